"""The transparency log in the ledger: right at every size, append-only, and every change behind its back is found."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from test_tlog import mth, path, subproof

from clue_coordinator import tlog
from clue_coordinator.backup import back_up, restore
from clue_coordinator.config import CoordinatorConfig, LedgerConfig
from clue_coordinator.database import Database
from clue_coordinator.errors import ConflictError, CoordinatorError, LogDamagedError, UsageError
from clue_coordinator.ledger import Ledger
from clue_protocol.tlog import (
    LOG_KEY,
    WITNESS_KEY,
    Checkpoint,
    CosignatureError,
    Evidence,
    Leaf,
    LeafError,
    LogError,
    LogSignatureError,
    NoteKey,
    ProofError,
    cosign_checkpoint,
    sign_checkpoint,
    verify_checkpoint,
    verify_consistency,
    verify_inclusion,
)

NewUrl = Callable[[], str]
ORIGIN = "log.example/homecams"
SIGNER, OTHER, WITNESS_SIGNER = (CryptoSigner.generate_ed25519() for _ in range(3))
LOG = NoteKey.of(ORIGIN, LOG_KEY, SIGNER.public_key)
WITNESS = NoteKey.of("witness.example/w", WITNESS_KEY, WITNESS_SIGNER.public_key)


def leaf(index: int) -> bytes:
    return Leaf.of("receipt", b"%d" % index, f"r/{index}").to_bytes()


def grow(ledger: Ledger, until: int) -> None:
    with ledger.write() as session:
        for index in range(tlog.size_of(session), until):
            assert tlog.append(session, "receipt", b"%d" % index, f"r/{index}") == index


def sign(ledger: Ledger) -> str:
    with ledger.write() as session:
        return tlog.make_checkpoint(session, ORIGIN, SIGNER, 1.0)


def execute(url: str, *statements: str) -> None:
    database = Database(url)
    try:
        with database.writer.begin() as connection:
            for statement in statements:
                connection.execute(text(statement))
    finally:
        database.close()


@pytest.fixture
def url(new_url: NewUrl) -> str:
    return new_url()


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    found = Ledger(url)
    yield found
    found.close()


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    """300 leaves: more than a tile."""
    found = Ledger(tmp_path_factory.mktemp("log") / "ledger.sqlite")
    grow(found, 300)
    yield found
    found.close()


LEAVES = [leaf(index) for index in range(300)]
ROOTS = [mth(LEAVES[:size]) for size in range(301)]


def test_every_root_up_to_300_leaves(grown: Ledger) -> None:
    with grown.read() as session:
        assert [tlog.Tree(session, size).root for size in range(301)] == ROOTS


def test_every_inclusion_proof_up_to_300_leaves(grown: Ledger) -> None:
    with grown.read() as session:
        for size in range(1, 301):
            tree, checkpoint = tlog.Tree(session, size), Checkpoint(ORIGIN, size, ROOTS[size])
            for index in range(size):
                verify_inclusion(LEAVES[index], tree.prove_inclusion(index), checkpoint)


def test_every_consistency_proof_up_to_300_leaves(grown: Ledger) -> None:
    with grown.read() as session:
        for new in range(301):
            tree, checkpoint = tlog.Tree(session, new), Checkpoint(ORIGIN, new, ROOTS[new])
            for old in range(new + 1):
                verify_consistency(Checkpoint(ORIGIN, old, ROOTS[old]), checkpoint, tree.prove_consistency(old))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 255, 256, 257, 300])
def test_proofs_are_those_of_the_rfc(grown: Ledger, size: int) -> None:
    with grown.read() as session:
        tree = tlog.Tree(session, size)
        for index in {0, size // 2, size - 1}:
            assert list(tree.prove_inclusion(index).hashes) == path(index, LEAVES[:size])
        for old in {1, (size + 1) // 2, size}:
            assert list(tree.prove_consistency(old).hashes) == subproof(old, LEAVES[:size])


def test_what_is_not_in_the_tree_is_not_proved(grown: Ledger) -> None:
    with grown.read() as session:
        for refused in (
            lambda: tlog.Tree(session, 301),
            lambda: tlog.Tree(session, 10).prove_inclusion(10),
            lambda: tlog.Tree(session, 10).prove_inclusion(-1),
            lambda: tlog.Tree(session, 10).prove_consistency(11),
            lambda: tlog.leaf_at(session, 300),
        ):
            with pytest.raises(ProofError):
                refused()


def test_two_levels_of_full_tiles(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """65,536 leaves close a tile of tiles: the hashes below are put in directly, 256 short of it."""
    from tlog_scales.tiles import leaf_hash

    from clue_coordinator.models import LogLeaf, LogNode

    rows = [Leaf.of("receipt", b"%d" % index, f"r/{index}") for index in range(65536)]
    hashes = [leaf_hash(row.to_bytes()) for row in rows]
    with ledger.write() as session:
        session.connection().execute(
            LogLeaf.__table__.insert(),
            [
                {"id": i, "kind": row.kind, "digest": row.digest, "reference": row.reference, "hash": hashes[i]}
                for i, row in enumerate(rows[:-1])
            ],
        )
        tree = tlog.Tree(session, 65535)
        session.connection().execute(
            LogNode.__table__.insert(),
            [{"level": 1, "position": position, "hash": tree.node(1, position)} for position in range(255)],
        )
    grow(ledger, 65537)
    note = sign(ledger)
    with ledger.read() as session:
        checkpoint = verify_checkpoint(note, LOG)
        assert session.query(LogNode).filter_by(level=2).count() == 1
        tree = tlog.Tree(session)
        for index in (0, 255, 256, 40000, 65535, 65536):
            verify_inclusion(leaf(index), tree.prove_inclusion(index), checkpoint)
        for size in (1, 256, 40000, 65535, 65536):
            old = Checkpoint(ORIGIN, size, tlog.Tree(session, size).root)
            verify_consistency(old, checkpoint, tree.prove_consistency(size))
        assert tlog.verify_log(session, [LOG]).leaves == 65537


def test_a_leaf_comes_and_goes_with_its_transaction(ledger: Ledger) -> None:
    grow(ledger, 255)

    def append_two(second: str) -> None:
        with ledger.write() as session:
            # The first closes a tile.
            tlog.append(session, "request", b"never", "x")
            tlog.append(session, second, b"this neither", "x")

    with pytest.raises(LeafError):
        append_two("gossip")
    grow(ledger, 300)
    with ledger.read() as session:
        assert tlog.Tree(session).root == ROOTS[300]
        assert tlog.verify_log(session, [LOG]).leaves == 300


def test_leaves_are_found_again(ledger: Ledger) -> None:
    with ledger.write() as session:
        tlog.append(session, "request", b"the request", "abc")
        tlog.append(session, "approval", b"an approval", "abc")
        tlog.append(session, "receipt", b"a receipt", "abc/pi-1")
    with ledger.read() as session:
        assert tlog.indices_of(session, "abc") == [0, 1]
        assert tlog.index_of(session, b"a receipt", "receipt") == 2
        assert tlog.index_of(session, b"a receipt", "request") is None
        assert tlog.leaf_at(session, 1) == Leaf.of("approval", b"an approval", "abc")


# Checkpoints


def test_checkpoints_follow_each_other(ledger: Ledger) -> None:
    notes = [sign(ledger)]
    for size in (3, 3, 256, 300):
        grow(ledger, size)
        notes.append(sign(ledger))
    assert notes[1] == notes[2]
    with ledger.read() as session:
        assert tlog.verify_log(session, [LOG]).checkpoints == 4
        verified = [verify_checkpoint(note, LOG) for note in notes]
        assert [one.size for one in verified] == [0, 3, 3, 256, 300]
        for old in verified:
            for new in verified:
                if old.size <= new.size:
                    verify_consistency(old, new, tlog.Tree(session, new.size).prove_consistency(old.size))
        assert tlog.note_of_size(session) == notes[-1]
        assert tlog.note_of_size(session, 256) == notes[3]
        with pytest.raises(UsageError, match="no checkpoint of 7 leaves"):
            tlog.note_of_size(session, 7)


def test_a_leaf_after_the_last_checkpoint_waits_for_the_next(ledger: Ledger) -> None:
    with ledger.read() as session, pytest.raises(UsageError, match="no checkpoint yet"):
        tlog.checkpoint_covering(session, 0, [LOG])
    grow(ledger, 3)
    sign(ledger)
    grow(ledger, 4)
    with ledger.read() as session:
        assert tlog.checkpoint_covering(session, 2, [LOG])[0].size == 3
        with pytest.raises(UsageError, match=r"leaf 3 of 4 came after the last checkpoint \(3 leaves\)"):
            tlog.checkpoint_covering(session, 3, [LOG])


def test_a_log_keeps_its_name_but_may_change_its_key(ledger: Ledger) -> None:
    grow(ledger, 2)
    sign(ledger)
    with pytest.raises(ConflictError, match="this log is called"), ledger.write() as session:
        tlog.make_checkpoint(session, "other.example", SIGNER, 2.0)
    with ledger.write() as session:
        tlog.make_checkpoint(session, ORIGIN, OTHER, 2.0)
    new = NoteKey.of(ORIGIN, LOG_KEY, OTHER.public_key)
    with ledger.read() as session:
        assert tlog.verify_log(session, [new, LOG]).checkpoints == 2
        with pytest.raises(LogDamagedError, match=r"checkpoint 1 of 2 leaves: .*not signed by the key"):
            tlog.verify_log(session, [new])


def test_witnesses_add_their_lines(ledger: Ledger) -> None:
    grow(ledger, 3)
    note = sign(ledger)
    for at in (100, 200, 200):
        with ledger.write() as session:
            tlog.add_cosignature(session, cosign_checkpoint(note, WITNESS.name, WITNESS_SIGNER, at), LOG, WITNESS, 5.0)
    grow(ledger, 4)
    sign(ledger)
    with ledger.read() as session:
        found = verify_checkpoint(tlog.note_of_size(session, 3), LOG, [WITNESS], 1)
        assert found.witnessed == {WITNESS.name: 200}
        assert session.execute(text("SELECT count(*) FROM log_cosignature")).scalar() == 2
        tlog.verify_log(session, [LOG])


def test_what_is_no_cosignature_of_this_log_is_refused(ledger: Ledger) -> None:
    grow(ledger, 3)
    note = sign(ledger)
    foreign = cosign_checkpoint(sign_checkpoint(Checkpoint(ORIGIN, 3, bytes(32)), SIGNER), WITNESS.name, WITNESS_SIGNER)
    forged = cosign_checkpoint(sign_checkpoint(Checkpoint(ORIGIN, 3, bytes(32)), OTHER), WITNESS.name, WITNESS_SIGNER)
    for wrong, error in ((note, CosignatureError), (foreign, UsageError), (forged, LogSignatureError)):
        with pytest.raises(error), ledger.write() as session:
            tlog.add_cosignature(session, wrong, LOG, WITNESS, 5.0)


# Changes behind its back

TABLES = ("log_leaf", "log_node", "log_checkpoint", "log_cosignature")


@pytest.fixture
def lived(ledger: Ledger, url: str) -> str:
    grow(ledger, 257)
    note = sign(ledger)
    with ledger.write() as session:
        tlog.add_cosignature(session, cosign_checkpoint(note, WITNESS.name, WITNESS_SIGNER, 7), LOG, WITNESS, 5.0)
    grow(ledger, 260)
    return url


def test_no_statement_changes_the_log(lived: str) -> None:
    changes = ["UPDATE {table} SET id = id + 1000", "DELETE FROM {table}"]
    if lived.startswith("sqlite"):
        changes.append("INSERT OR REPLACE INTO {table} SELECT * FROM {table}")
        node = "INSERT OR REPLACE INTO log_node (level, position, hash) VALUES (1, 0, x'00')"
        with pytest.raises(IntegrityError, match="log is append-only"):
            execute(lived, node)
    else:
        changes.append("TRUNCATE {table} CASCADE")
    for table in TABLES:
        for change in changes:
            with pytest.raises(IntegrityError, match="log is append-only"):
                execute(lived, change.format(table=table))


def forge(url: str, *statements: str) -> None:
    """What the owner of the database can do: without the triggers."""
    if url.startswith("sqlite"):
        drops = [f"DROP TRIGGER {table}_no_{what}" for table in TABLES for what in ("update", "delete", "replace")]
    else:
        drops = [f"DROP TRIGGER {table}_no_change ON {table}" for table in TABLES]
    execute(url, *drops, *statements)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        (
            "UPDATE log_leaf SET digest = replace(digest, 'a', 'b') WHERE id = 17",
            r"leaf 17 \(receipt r/17\) was changed",
        ),
        ("UPDATE log_leaf SET reference = 'r/18' WHERE id = 17", r"leaf 17 \(receipt r/18\) was changed"),
        ("UPDATE log_leaf SET kind = 'gossip' WHERE id = 17", "leaf 17: a leaf is of the kind"),
        ("UPDATE log_leaf SET hash = (SELECT hash FROM log_leaf WHERE id = 3) WHERE id = 17", "leaf 17 .* was changed"),
        ("DELETE FROM log_leaf WHERE id = 17", "leaf 17 is missing"),
        ("DELETE FROM log_leaf WHERE id > 250", "the tree is damaged: it holds hashes that belong to no leaves"),
        ("DELETE FROM log_leaf WHERE id >= 256", "the log has 256 leaves, but 257 were signed"),
        ("DELETE FROM log_node", "the tree is damaged"),
        ("UPDATE log_node SET hash = (SELECT hash FROM log_leaf WHERE id = 3)", "the tree is damaged"),
        ("INSERT INTO log_node (level, position, hash) SELECT 1, 1, hash FROM log_node", "belong to no leaves"),
        ("UPDATE log_checkpoint SET size = 9", "was signed for"),
        ("UPDATE log_checkpoint SET note = replace(note, '257', '256')", "signature of the log .* is wrong"),
    ],
)
def test_a_change_behind_its_back_is_named(ledger: Ledger, lived: str, statement: str, message: str) -> None:
    with ledger.read() as session:
        assert tlog.verify_log(session, [LOG]).leaves == 260
    forge(lived, statement)
    with ledger.read() as session, pytest.raises(LogDamagedError) as caught:
        tlog.verify_log(session, [LOG])
    assert re.search(message, str(caught.value)), caught.value
    assert "\n" not in str(caught.value)


def test_a_log_that_was_rewritten_is_not_signed(ledger: Ledger, lived: str) -> None:
    """Also where every hash fits: the last checkpoint remembers."""
    forge(lived, "DELETE FROM log_node", "DELETE FROM log_leaf")
    with ledger.write() as session:
        for index in range(300):
            tlog.append(session, "receipt", b"forged %d" % index, f"r/{index}")
    with pytest.raises(LogDamagedError, match="257 leaves are not those of the last checkpoint"):
        sign(ledger)
    with ledger.read() as session, pytest.raises(LogDamagedError, match="checkpoint 1 was signed for"):
        tlog.verify_log(session, [LOG])


def test_a_log_that_lost_leaves_is_not_signed(ledger: Ledger, lived: str) -> None:
    forge(lived, "DELETE FROM log_leaf WHERE id >= 256")
    with pytest.raises(LogDamagedError, match="the log has 256 leaves and has signed 257"):
        sign(ledger)


def test_a_backup_carries_the_log(ledger: Ledger, lived: str, new_url: NewUrl, tmp_path: Path) -> None:
    def config(url: str) -> CoordinatorConfig:
        home = tmp_path / "home"
        home.mkdir(exist_ok=True)
        return CoordinatorConfig(home=home, ledger=LedgerConfig(url=url))

    back_up(config(lived), tmp_path / "backup")
    other = new_url()
    restore(config(other), tmp_path / "backup")
    again = Ledger(other)
    try:
        with ledger.read() as session, again.read() as second:
            assert tlog.verify_log(session, [LOG]) == tlog.verify_log(second, [LOG])
            assert tlog.note_of_size(session) == tlog.note_of_size(second)
        grow(again, 600)
        sign(again)
        with again.read() as session:
            assert tlog.verify_log(session, [LOG]).checkpoints == 2
        with pytest.raises(IntegrityError, match="append-only"):
            execute(other, "DELETE FROM log_leaf")
    finally:
        again.close()


def test_a_missing_tile_is_one_line(ledger: Ledger, lived: str) -> None:
    forge(lived, "DELETE FROM log_node")
    with ledger.read() as session, pytest.raises(CoordinatorError, match="hashes of level 1 from 0 on are missing"):
        tlog.Tree(session).prove_inclusion(258)


# What a regulator gets


def test_the_page_says_how_to_verify(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the program in docs/log.md on real files, and on files with one byte changed."""
    grow(ledger, 300)
    sign(ledger)
    with ledger.read() as session:
        evidence = tlog.prove(session, 17, [LOG])
    page = (Path(__file__).parents[2] / "docs" / "log.md").read_text()
    program = page.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    files = {"log.vkey": LOG.to_text() + "\n", "evidence.json": evidence.to_json(), "receipt.dsse": "17"}
    for name, content in files.items():
        Path(name).write_text(content)
    exec(program, {})  # noqa: S102
    for name, old, new in (
        ("receipt.dsse", "17", "18"),
        ("evidence.json", "r/17", "r/18"),
        ("evidence.json", '"index": 17', '"index": 18'),
        ("evidence.json", "\\n300\\n", "\\n301\\n"),
        ("evidence.json", '"kind": "receipt"', '"kind": "receipt", "kind": "receipt"'),
        ("log.vkey", LOG.to_text(), NoteKey.of(ORIGIN, LOG_KEY, OTHER.public_key).to_text()),
    ):
        assert old in files[name]
        Path(name).write_text(files[name].replace(old, new))
        with pytest.raises(LogError):
            exec(program, {})  # noqa: S102
        Path(name).write_text(files[name])


def test_every_flipped_bit_of_the_evidence_is_found(grown: Ledger) -> None:
    with grown.write() as session:
        tlog.make_checkpoint(session, ORIGIN, SIGNER, 1.0)
    with grown.read() as session:
        evidence = tlog.prove(session, 17, [LOG])
    text = evidence.to_json().encode()
    assert Evidence.from_json(text).verify(LOG, document=b"17").size == 300
    passed = 0
    for bit in range(8 * len(text)):
        changed = bytearray(text)
        changed[bit // 8] ^= 1 << bit % 8
        try:
            found = Evidence.from_json(bytes(changed))
            found.verify(LOG, document=b"17")
        except LogError:
            continue
        # JSON has more than one kind of white space between its parts; nothing else may pass.
        assert found == evidence
        assert chr(text[bit // 8]).isspace()
        passed += 1
    assert passed < 100
