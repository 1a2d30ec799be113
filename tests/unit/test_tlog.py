"""The transparency log for those who only have public keys: published vectors, and everything that can be wrong."""

import hashlib
import json
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.signer import CryptoSigner
from tlog_scales.reader import TilesReader

from clue_protocol import tlog
from clue_protocol.tlog import (
    LOG_KEY,
    WITNESS_KEY,
    Checkpoint,
    ConsistencyProof,
    InclusionProof,
    Leaf,
    NoteKey,
    check_fresh,
    cosign_checkpoint,
    parse_checkpoint,
    sign_checkpoint,
    verify_checkpoint,
    verify_consistency,
    verify_inclusion,
)
from clue_protocol.tlog.note import parse_note

ORIGIN = "log.example/homecams"
SIGNER, OTHER = CryptoSigner.generate_ed25519(), CryptoSigner.generate_ed25519()
LOG = NoteKey.of(ORIGIN, LOG_KEY, SIGNER.public_key)
WITNESS_SIGNERS = [CryptoSigner.generate_ed25519() for _ in range(3)]
WITNESSES = [
    NoteKey.of(f"witness.example/{n}", WITNESS_KEY, signer.public_key) for n, signer in enumerate(WITNESS_SIGNERS)
]

# The leaves of Certificate Transparency's reference tree, and its roots for 0 to 8 leaves.
CT_LEAVES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
CT_ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


# RFC 9162 2.1.1, 2.1.3.1 and 2.1.4.1 as they are written: what the proofs must be.


def mth(leaves: list[bytes]) -> bytes:
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = split(len(leaves))
    return hashlib.sha256(b"\x01" + mth(leaves[:k]) + mth(leaves[k:])).digest()


def split(n: int) -> int:
    k = 1
    while 2 * k < n:
        k *= 2
    return k


def path(m: int, leaves: list[bytes]) -> list[bytes]:
    if len(leaves) == 1:
        return []
    k = split(len(leaves))
    if m < k:
        return [*path(m, leaves[:k]), mth(leaves[k:])]
    return [*path(m - k, leaves[k:]), mth(leaves[:k])]


def subproof(m: int, leaves: list[bytes], whole: bool = True) -> list[bytes]:
    if m == len(leaves):
        return [] if whole else [mth(leaves)]
    k = split(len(leaves))
    if m <= k:
        return [*subproof(m, leaves[:k], whole), mth(leaves[k:])]
    return [*subproof(m - k, leaves[k:], False), mth(leaves[:k])]


def checkpoint(leaves: list[bytes], origin: str = ORIGIN) -> Checkpoint:
    return Checkpoint(origin, len(leaves), mth(leaves))


def leaves(number: int, salt: str = "") -> list[bytes]:
    return [Leaf.of("receipt", f"{salt}{index}".encode(), f"r/{index}").to_bytes() for index in range(number)]


# The tree


def test_roots_of_the_published_tree() -> None:
    assert [mth(CT_LEAVES[:size]).hex() for size in range(9)] == CT_ROOTS
    hashes = b"".join(hashlib.sha256(b"\x00" + leaf).digest() for leaf in CT_LEAVES)

    class OneTile:
        def get(self, *path: str) -> bytes | None:
            return hashes[: 32 * int(path[-1])]

    for size in range(9):
        reader = TilesReader(OneTile())
        reader.set_size(size)
        assert reader.calculate_root_hash().hex() == CT_ROOTS[size]


def test_published_inclusion_and_consistency_proofs() -> None:
    def tree(size: int) -> Checkpoint:
        return Checkpoint(ORIGIN, size, bytes.fromhex(CT_ROOTS[size]))

    def hashes(*texts: str) -> tuple[bytes, ...]:
        return tuple(bytes.fromhex(text) for text in texts)

    first_of_8 = hashes(
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    )
    verify_inclusion(CT_LEAVES[0], InclusionProof(0, 8, first_of_8), tree(8))
    from_6_to_8 = hashes(
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    )
    verify_consistency(tree(6), tree(8), ConsistencyProof(6, 8, from_6_to_8))


@given(st.data())
def test_a_right_proof_verifies_and_no_other(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 64))
    index = data.draw(st.integers(0, size - 1))
    old = data.draw(st.integers(1, size))
    all_leaves = leaves(size)
    whole = checkpoint(all_leaves)
    proof = InclusionProof(index, size, tuple(path(index, all_leaves)))
    verify_inclusion(all_leaves[index], proof, whole)
    for wrong in {0, size - 1, (index + 1) % size} - {index}:
        with pytest.raises(tlog.InclusionError):
            verify_inclusion(all_leaves[index], InclusionProof(wrong, size, proof.hashes), whole)
    longer = consistency(all_leaves, old)
    verify_consistency(checkpoint(all_leaves[:old]), whole, longer)
    for hashes in {(*longer.hashes, bytes(32)), longer.hashes[:-1]} - {longer.hashes}:
        with pytest.raises(tlog.ConsistencyError):
            verify_consistency(checkpoint(all_leaves[:old]), whole, ConsistencyProof(old, size, hashes))


def consistency(all_leaves: list[bytes], old: int) -> ConsistencyProof:
    return ConsistencyProof(old, len(all_leaves), tuple(subproof(old, all_leaves)))


def flip(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_every_flipped_bit_of_a_proof_is_found() -> None:
    all_leaves = leaves(21)
    whole, prefix = checkpoint(all_leaves), checkpoint(all_leaves[:13])
    inclusion = json.dumps(InclusionProof(12, 21, tuple(path(12, all_leaves))).to_dict()).encode()
    consistent = json.dumps(consistency(all_leaves, 13).to_dict()).encode()

    def check_inclusion(data: bytes) -> None:
        verify_inclusion(all_leaves[12], InclusionProof.from_dict(json.loads(data)), whole)

    def check_consistency(data: bytes) -> None:
        verify_consistency(prefix, whole, ConsistencyProof.from_dict(json.loads(data)))

    for text, check in ((inclusion, check_inclusion), (consistent, check_consistency)):
        check(text)
        for bit in range(8 * len(text)):
            with pytest.raises((tlog.LogError, ValueError)):
                check(flip(text, bit))
    proof = InclusionProof.from_dict(json.loads(inclusion))
    for bit in range(8 * len(all_leaves[12])):
        with pytest.raises(tlog.InclusionError):
            verify_inclusion(flip(all_leaves[12], bit), proof, whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "clue-inclusion-proof/2"}, "form"),
        ({"index": 21}, "leaf 21 of 21"),
        ({"index": -1}, "index is not"),
        ({"index": True}, "index is not"),
        ({"size": 21.0}, "size is not"),
        ({"size": 1 << 63}, "size is not"),
        ({"hashes": "00" * 32}, "hashes is not"),
        ({"hashes": ["00" * 32] * 65}, "at most 64"),
        ({"hashes": ["00" * 31]}, "64 hexadecimal"),
        ({"hashes": ["AB" * 32]}, "small letters"),
        ({"more": 1}, "form"),
    ],
)
def test_a_malformed_proof_is_refused(change: dict[str, Any], message: str) -> None:
    good = InclusionProof(12, 21, (bytes(32),)).to_dict()
    with pytest.raises(tlog.ProofError, match=message):
        InclusionProof.from_dict(good | change)
    for wrong in (None, [], "x", {}):
        with pytest.raises(tlog.ProofError):
            ConsistencyProof.from_dict(wrong)


# Old, forked and rolled back logs


def test_a_forked_log_is_found() -> None:
    ours, theirs = leaves(9), leaves(6) + leaves(3, "forged")
    with pytest.raises(tlog.ForkError, match="two logs"):
        verify_consistency(checkpoint(ours), checkpoint(theirs), consistency(theirs, 9))
    longer = [*theirs, b"more"]
    with pytest.raises(tlog.ConsistencyError, match="does not begin"):
        verify_consistency(checkpoint(ours), checkpoint(longer), consistency(longer, 9))


def test_an_old_checkpoint_is_a_rollback() -> None:
    ours = leaves(9)
    with pytest.raises(tlog.RollbackError, match="8 leaves, the older one has 9"):
        verify_consistency(checkpoint(ours), checkpoint(ours[:8]), consistency(ours, 8))
    with pytest.raises(tlog.ProofError, match="checkpoints from 8 to 9"):
        verify_consistency(checkpoint(ours[:8]), checkpoint(ours), consistency(ours, 7))
    with pytest.raises(tlog.ProofError, match="log of 9 leaves, the checkpoint says 8"):
        verify_inclusion(ours[0], InclusionProof(0, 9, tuple(path(0, ours))), checkpoint(ours[:8]))
    with pytest.raises(tlog.OriginError):
        verify_consistency(checkpoint(ours[:8], "other.example"), checkpoint(ours), consistency(ours, 8))


def test_the_empty_log_is_the_beginning_of_every_log_and_of_no_forged_one() -> None:
    ours = leaves(5)
    verify_consistency(checkpoint([]), checkpoint(ours), ConsistencyProof(0, 5, ()))
    verify_consistency(checkpoint(ours), checkpoint(ours), ConsistencyProof(5, 5, ()))
    with pytest.raises(tlog.ConsistencyError):
        verify_consistency(Checkpoint(ORIGIN, 0, bytes(32)), checkpoint(ours), ConsistencyProof(0, 5, ()))
    with pytest.raises(tlog.ConsistencyError):
        verify_consistency(checkpoint(ours), checkpoint(ours), ConsistencyProof(5, 5, (bytes(32),)))


# Checkpoints


@cache
def witnessed(at: int = 1_000_000, number: int = 3) -> str:
    note = sign_checkpoint(checkpoint(leaves(9)), SIGNER)
    for witness, signer in list(zip(WITNESSES, WITNESS_SIGNERS, strict=True))[:number]:
        note = cosign_checkpoint(note, witness.name, signer, at)
    return note


def test_a_published_note_verifies() -> None:
    # Of the Go project's implementation.
    key = NoteKey.from_text("PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")
    note = (
        "If you think cryptography is the answer to your problem,\n"
        "then you don't know what your problem is.\n\n"
        "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
    )
    text, [signature] = parse_note(note)
    assert key.vkey.match(signature)
    Ed25519PublicKey.from_public_bytes(key.public).verify(signature.payload, text.encode())


def test_the_checkpoint_of_the_specification_is_read() -> None:
    note = (
        "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n"
        "— example.com/behind-the-sofa "
        "Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"
        "— witness.example.com/w1 "
        "jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==\n"
    )
    found, signatures = parse_checkpoint(note)
    assert (found.origin, found.size) == ("example.com/behind-the-sofa", 20852163)
    assert int.from_bytes(signatures[1].payload[:8], "big") == 1679315147


def test_a_checkpoint_is_verified_with_its_witnesses() -> None:
    verified = verify_checkpoint(witnessed(), LOG, WITNESSES, 3)
    assert (verified.size, verified.root) == (9, mth(leaves(9)))
    assert verified.witnessed == {witness.name: 1_000_000 for witness in WITNESSES}
    # Who knows none of them is not disturbed by them.
    assert verify_checkpoint(witnessed(), LOG).witnessed == {}


def test_too_few_witnesses() -> None:
    with pytest.raises(tlog.WitnessThresholdError, match=r"1 of the 3 known witnesses .* 2 must"):
        verify_checkpoint(witnessed(number=1), LOG, WITNESSES, 2)
    # The same one twice is one.
    twice = cosign_checkpoint(witnessed(number=1), "x", WITNESS_SIGNERS[0], 5)
    again = twice + witnessed(number=1).splitlines(keepends=True)[-1]
    with pytest.raises(tlog.WitnessThresholdError, match="1 of the 3"):
        verify_checkpoint(again, LOG, WITNESSES, 2)
    alias = NoteKey("alias", WITNESS_KEY, WITNESSES[0].public)
    with pytest.raises(tlog.NoteKeyError, match="one key"):
        verify_checkpoint(twice, LOG, [WITNESSES[0], alias], 2)


def test_a_wrong_key() -> None:
    forged = sign_checkpoint(checkpoint(leaves(9)), OTHER)
    with pytest.raises(tlog.LogSignatureError, match="not signed by the key"):
        verify_checkpoint(forged, LOG)
    # With the key id of the log's key in front of another key's signature.
    body, [theirs] = parse_note(forged)
    _, [ours] = parse_note(sign_checkpoint(checkpoint(leaves(8)), SIGNER))
    mixed = f"{body}\n{ours.serialize()!s}\n"
    with pytest.raises(tlog.LogSignatureError, match="wrong"):
        verify_checkpoint(mixed, LOG)
    assert theirs.key_id != ours.key_id
    with pytest.raises(tlog.OriginError, match=r"log log\.example/homecams, expected other\.example"):
        verify_checkpoint(forged, NoteKey.of("other.example", LOG_KEY, SIGNER.public_key))


def test_a_witness_cannot_stand_in_for_the_log_nor_the_log_for_a_witness() -> None:
    note = witnessed(number=1)
    only_witness = "".join(line for line in note.splitlines(keepends=True) if not line.startswith(f"— {ORIGIN}"))
    with pytest.raises(tlog.LogSignatureError):
        verify_checkpoint(only_witness, LOG, WITNESSES, 1)
    with pytest.raises(tlog.NoteKeyError, match="key of a witness"):
        verify_checkpoint(note, WITNESSES[0])
    with pytest.raises(tlog.NoteKeyError, match="not the key of a witness"):
        verify_checkpoint(note, LOG, [LOG], 1)


def test_every_flipped_bit_of_a_witnessed_checkpoint_is_found() -> None:
    note = witnessed(number=2).encode()
    for bit in range(8 * len(note)):
        with pytest.raises(tlog.LogError):
            verify_checkpoint(flip(note, bit), LOG, WITNESSES[:2], 2)


@given(st.binary(max_size=300) | st.text(max_size=300).map(lambda text: text.encode(errors="surrogatepass")))
def test_no_bytes_are_a_checkpoint_by_chance(data: bytes) -> None:
    for note in (data, data + witnessed().encode(), witnessed().encode()[:-1] + data):
        if note != witnessed().encode():
            with pytest.raises(tlog.LogError):
                verify_checkpoint(note, LOG, WITNESSES, 3)


@pytest.mark.parametrize(
    "change",
    [
        lambda note: note.replace("\n9\n", "\n09\n"),
        lambda note: note.replace("\n9\n", "\n+9\n"),
        lambda note: note.replace("\n9\n", "\n٩\n"),
        lambda note: note.replace("\n9\n", "\n9\nextension\n"),
        lambda note: note.replace("\n", "\r\n"),
        lambda note: note + "\n",
        lambda note: note[:-1],
        lambda note: note.replace(ORIGIN, "log example", 1),
        lambda note: note.replace("=\n\n", "\n\n"),
        lambda note: note.replace("—", "-"),
        lambda note: note + note.splitlines(keepends=True)[-1] * 64,
        lambda note: note.split("\n\n")[0] + "\n\n",
    ],
)
def test_there_is_one_way_to_write_a_checkpoint(change: Callable[[str], str]) -> None:
    with pytest.raises((tlog.NoteError, tlog.CheckpointError)):
        parse_checkpoint(change(witnessed()))


# Frozen logs


def test_a_frozen_log() -> None:
    verified = verify_checkpoint(witnessed(at=1_000_000), LOG, WITNESSES, 3)
    check_fresh(verified, 1_000_500, 600, 3)
    with pytest.raises(tlog.FrozenError, match="last saw the checkpoint 700 s ago, 600 s are allowed"):
        check_fresh(verified, 1_000_700, 600, 3)
    with pytest.raises(tlog.FrozenError, match="0 known witnesses"):
        check_fresh(verify_checkpoint(witnessed(), LOG), 1_000_000, 600)
    # One that looked again is enough for one, not for two.
    again = cosign_checkpoint(witnessed(), WITNESSES[0].name, WITNESS_SIGNERS[0], 1_000_700)
    verified = verify_checkpoint(again, LOG, WITNESSES, 3)
    check_fresh(verified, 1_000_700, 600)
    with pytest.raises(tlog.FrozenError):
        check_fresh(verified, 1_000_700, 600, 2)


def test_a_time_in_the_future_keeps_nothing_fresh() -> None:
    verified = verify_checkpoint(witnessed(at=2_000_000_000), LOG, WITNESSES, 3)
    with pytest.raises(tlog.FrozenError, match="0 known witnesses"):
        check_fresh(verified, 1_000_000, 600)


# Keys and leaves


def test_verifier_keys_are_read_strictly() -> None:
    text = LOG.to_text()
    assert NoteKey.from_text(text) == LOG
    for bit in range(8 * len(text)):
        changed = flip(text.encode(), bit).decode(errors="replace")
        if changed.strip() != text:
            with pytest.raises(tlog.NoteKeyError):
                NoteKey.from_text(changed)
    for wrong in ("", "a", "a+b", "a+00000000+", "a+0+AQ==", "a b+00000000+AQ=="):
        with pytest.raises(tlog.NoteKeyError):
            NoteKey.from_text(wrong)


def test_a_signer_signs_only_as_itself() -> None:
    with pytest.raises(tlog.NoteKeyError, match="Ed25519"):
        NoteKey.of("x", LOG_KEY, CryptoSigner.generate_ecdsa().public_key)
    with pytest.raises(tlog.NoteKeyError, match="without spaces"):
        sign_checkpoint(Checkpoint("two words", 0, bytes(32)), SIGNER)


def test_a_leaf_has_one_form() -> None:
    leaf = Leaf.of("request", b"envelope", "0b5f")
    data = leaf.to_bytes()
    assert Leaf.from_bytes(data) == leaf
    assert leaf.digest == hashlib.sha256(b"envelope").hexdigest()
    for wrong in (b"", b"{}", b"[]", data + b" ", data.replace(b":", b": "), data.replace(b"request", b"gossip")):
        with pytest.raises(tlog.LeafError):
            Leaf.from_bytes(wrong)
    for kind, digest, reference in (
        ("gossip", leaf.digest, "x"),
        ("request", "AB" * 32, "x"),
        ("request", leaf.digest, ""),
        ("request", leaf.digest, "a b"),
        ("request", leaf.digest, "x" * 256),
        ("request", leaf.digest, "x\n"),
    ):
        with pytest.raises(tlog.LeafError):
            Leaf(kind, digest, reference)
