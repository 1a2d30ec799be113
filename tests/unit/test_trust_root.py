"""Roots: what they may say, how they are signed, and the chain that a device follows."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from securesystemslib.signer import CryptoSigner, SSlibKey
from trust_simulator import IN_1970, YEAR, Device, Installation, edited, payload_of, people, role, signed, with_payload

from clue_protocol.errors import EnvelopeError
from clue_protocol.trust import (
    ROOT_TYPE,
    FleetTrust,
    Revocation,
    Role,
    Root,
    add_signature,
    next_root,
    pin_root,
    successor,
    walk_chain,
)
from clue_protocol.trust import errors as wrong
from clue_protocol.trust.envelopes import read_envelope, signers
from clue_protocol.trust.keys import checked_key, fingerprint, normal_key
from clue_protocol.trust.times import DAY
from clue_protocol.v1 import trust_pb2 as pb


@pytest.fixture
def world() -> Installation:
    return Installation()


@pytest.fixture
def device(world: Installation, tmp_path: Path) -> Device:
    return Device(world, tmp_path)


def next_version(world: Installation, **changes: Any) -> Root:
    root = successor(world.root, world.now, world.now + YEAR)
    return replace(root, **changes) if changes else root


# The chain


def test_a_device_that_was_off_through_three_rotations(world: Installation, device: Device) -> None:
    first_holders = world.holders
    for _ in range(3):
        world.now += 2 * YEAR  # each expires before the next one is made
        world.rotate_holders()
    gone = world.revoke_approver()
    assert not set(first_holders) & set(world.holders)
    device.power_cut(wall=IN_1970)
    device.receive_roots(world.roots)
    assert device.root.root.version == 5
    device.learn_time()
    device.refuses(wrong.RevokedKeyError, device.receive_request, world.request([gone]))
    device.receive_request(world.request())
    assert device.forgotten == ["bird"]


def test_the_newest_root_alone_leaves_a_gap(world: Installation, device: Device) -> None:
    for _ in range(3):
        world.rotate_holders()
    assert device.refuses(wrong.RootGapError, device.receive_roots, world.roots[-1:]).hold  # type: ignore[attr-defined]
    # Half a chain is no step: the device stays where it was.
    device.refuses(wrong.RootGapError, device.receive_roots, [world.roots[1], world.roots[3]])
    device.receive_roots(world.roots[1:])


def test_rollback(world: Installation, device: Device) -> None:
    world.rotate_holders()
    world.rotate_holders()
    device.receive_roots(world.roots)
    for old in world.roots[:2]:
        device.refuses(wrong.RootRollbackError, device.receive_roots, [old])
    device.receive_roots(world.roots[2:])  # the same again is fine


def test_an_older_root_put_on_the_disk(world: Installation, device: Device) -> None:
    world.rotate_holders()
    device.receive_roots(world.roots)
    (device.home / "root.json").write_bytes(world.roots[0])
    with pytest.raises(wrong.RootRollbackError):
        device.power_cut(wall=IN_1970)
    fork = Installation.sign_root(replace(next_version(world), version=2), world.holders[:2])
    (device.home / "root.json").write_bytes(fork)
    with pytest.raises(wrong.RootForkError):
        device.power_cut(wall=IN_1970)


def test_a_power_cut_between_root_and_state(world: Installation, device: Device) -> None:
    """The root is written first; the device goes on from it."""
    world.rotate_holders()
    (device.home / "root.json").write_bytes(world.roots[1])
    device.power_cut(wall=IN_1970)
    assert device.root.root.version == 2


def test_fork(world: Installation, device: Device) -> None:
    """Root holders who sign two successors: whoever has one refuses the other, and everything after it."""
    one = Installation.sign_root(next_version(world), world.holders[:2])
    other = Installation.sign_root(next_version(world, expires_ns=world.now + DAY), world.holders[:2])
    device.receive_roots([one])
    device.refuses(wrong.RootForkError, device.receive_roots, [other])
    after = successor(walk_chain(world.root, [other]), world.now, world.now + YEAR)
    device.refuses(wrong.RootForkError, device.receive_roots, [Installation.sign_root(after, world.holders[:2])])


def test_signed_by_the_old_holders_only_or_the_new_only(world: Installation, device: Device) -> None:
    new = people(3)
    root = next_version(world, root=role(new, 2))
    for who in (world.holders, new, [world.holders[0], *new], [*world.holders, new[0]]):
        device.refuses(wrong.ThresholdError, device.receive_roots, [Installation.sign_root(root, who)])
    device.receive_roots([Installation.sign_root(root, [*world.holders[:2], *new[1:]])])


def test_below_threshold_and_wrong_role(world: Installation, device: Device) -> None:
    root = next_version(world)
    others = [world.timer, *world.approvers, world.barn]
    for who in ([], world.holders[:1], others, [world.holders[0], world.holders[0]], [world.holders[1], *others]):
        device.refuses(wrong.ThresholdError, device.receive_roots, [Installation.sign_root(root, who)])


def test_another_installation(world: Installation, device: Device) -> None:
    root = next_version(world, installation="0" * 32)
    device.refuses(wrong.RootInstallationError, device.receive_roots, [Installation.sign_root(root, world.holders)])


def test_a_pin_accepts_one_root_only(world: Installation) -> None:
    data = world.roots[0]
    assert pin_root(data, world.root.digest) == world.root
    with pytest.raises(wrong.RootPinError):
        pin_root(Installation().roots[0], world.root.digest)
    weak = Installation.sign_root(world.root.root, world.holders[:1])
    assert Installation.digest_of(weak) == world.root.digest
    with pytest.raises(wrong.ThresholdError, match="1 of the 3"):
        pin_root(weak, world.root.digest)


@pytest.mark.parametrize("field", [field.name for field in pb.Root.DESCRIPTOR.fields if field.name != "version"])
def test_a_tampered_field(world: Installation, device: Device, field: str) -> None:
    world.revoke_approver()
    world.rotate_holders()
    device.receive_roots(world.roots[:2])
    data = edited(world.roots[2], pb.Root, lambda message: message.ClearField(field))
    assert data != world.roots[2]
    device.refuses(wrong.ThresholdError, device.receive_roots, [data])


def test_a_tampered_version(world: Installation, device: Device) -> None:
    world.rotate_holders()
    for version, error in ((0, "Rollback"), (1, "Threshold"), (3, "Gap"), (2**64 - 1, "Gap")):
        data = edited(world.roots[1], pb.Root, lambda message: setattr(message, "version", version))  # noqa: B023
        names = {"Rollback": wrong.RootRollbackError, "Threshold": wrong.ThresholdError, "Gap": wrong.RootGapError}
        device.refuses(names[error], device.receive_roots, [data])


def test_the_log_has_ed25519_keys_of_its_own(world: Installation) -> None:
    for log in (role([world.timer]), role([world.holders[0]]), role([world.log, *people(1)], 2)):
        with pytest.raises(wrong.RootContentError, match="log"):
            next_version(world, log=log)
    with pytest.raises(wrong.RootContentError, match="Ed25519"):
        next_version(world, log=role([CryptoSigner.generate_ecdsa()]))
    both = next_version(world, log=role([world.log, *people(1)]))
    assert Root.from_payload(payload_of(both.to_envelope())).log == both.log


def test_revocations_and_epochs_only_grow(world: Installation, device: Device) -> None:
    world.revoke_approver()
    device.receive_roots(world.roots)
    root = next_version(world, revoked=())
    device.refuses(wrong.RootRevocationError, device.receive_roots, [Installation.sign_root(root, world.holders)])
    fleets = {"homecams": FleetTrust(role(world.approvers, 2), epoch=3)}
    world.publish(successor(world.root, world.now, world.now + YEAR, fleets=fleets), world.holders)
    device.receive_roots(world.roots[-1:])
    fleets = {"homecams": FleetTrust(role(world.approvers, 2), epoch=2)}
    root = successor(world.root, world.now, world.now + YEAR, fleets=fleets)
    device.refuses(wrong.RootRevocationError, device.receive_roots, [Installation.sign_root(root, world.holders)])


def test_a_root_dated_before_the_last(world: Installation, device: Device) -> None:
    root = next_version(world, issued_ns=world.now - 1)
    device.refuses(wrong.RootContentError, device.receive_roots, [Installation.sign_root(root, world.holders)])


# Signing


def test_signatures_are_added_on_other_machines_in_any_order(world: Installation) -> None:
    root = next_version(world)
    a, b = world.holders[:2]
    one = signed(root.to_envelope(), ROOT_TYPE, [a, b])
    assert one == signed(root.to_envelope(), ROOT_TYPE, [b, a, b])
    assert payload_of(one) == payload_of(root.to_envelope())
    assert next_root(world.root, one).root == root
    with pytest.raises(EnvelopeError, match="expected"):
        add_signature(one, "application/vnd.clue.time.v1+protobuf", a)


def test_equal_roots_have_equal_bytes(world: Installation) -> None:
    root = next_version(world)
    shuffled = replace(
        root,
        root=Role(tuple(reversed(root.root.keys)), 2),
        fleets=dict(reversed(list(root.fleets.items()))),
    )
    assert shuffled.to_envelope() == root.to_envelope()
    assert Root.from_payload(payload_of(root.to_envelope())).to_envelope() == root.to_envelope()


# What a root may say


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"installation": "home"}, "32 hex digits"),
        ({"version": 0}, "version 0"),
        ({"version": 2**63}, "version"),
        ({"previous_digest": b""}, "digest"),
        ({"issued_ns": -1}, "years 1970"),
        ({"expires_ns": 10**21}, "years 1970"),
        ({"expires_ns": 1}, "before it is issued"),
        ({"fleets": {"-": None}}, "fleet name"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_root_that_makes_no_sense(world: Installation, changes: dict[str, Any], problem: str) -> None:
    if "fleets" in changes:
        changes = {"fleets": {"-": FleetTrust(role([world.barn]))}}
    with pytest.raises(wrong.RootContentError, match=problem):
        next_version(world, **changes)


def test_thresholds_that_mean_nothing(world: Installation) -> None:
    [key] = role(people(1)).keys
    for keys, threshold in (((), 0), ((), 1), ((key,), 0), ((key,), 2), ((key,), -1), ((key, key), 2)):
        with pytest.raises(wrong.RootContentError):
            Role(keys, threshold)


def test_a_timestamp_key_has_no_other_role(world: Installation) -> None:
    for changes in (
        {"timestamp": role(world.holders[:1])},
        {"timestamp": role([world.barn])},
        {"fleets": {"attic": FleetTrust(role([world.barn]), enrolment=role([world.timer]))}},
    ):
        with pytest.raises(wrong.RootContentError, match="online"):
            next_version(world, **changes)


def test_a_revoked_key_has_no_role(world: Installation) -> None:
    key = world.barn.public_key
    with pytest.raises(wrong.RootContentError, match="revoked key"):
        successor(world.root, world.now, world.now + YEAR, revoke=[(key, "lost")])
    twice = (Revocation(key, 1), Revocation(key, 2))
    with pytest.raises(wrong.RootContentError, match="twice"):
        next_version(world, fleets={}, revoked=twice)


@pytest.mark.parametrize("problem", ["unsorted", "unused key", "unknown field", "unknown key", "fleet twice"])
def test_a_signed_root_that_is_not_in_normal_form(world: Installation, device: Device, problem: str) -> None:
    message = next_version(world).to_message()
    payload = None
    if problem == "unsorted":
        message.root.key_ids.reverse()
    elif problem == "unused key":
        message.keys.add(keytype="ed25519", scheme="ed25519", public=people(1)[0].public_key.keyval["public"])
    elif problem == "unknown field":
        payload = message.SerializeToString(deterministic=True) + b"\x98\x06\x01"  # field 99
    elif problem == "unknown key":
        message.root.key_ids[0] = "00" * 32
    else:
        message.fleets.add().CopyFrom(message.fleets[0])
    data = with_payload(world.roots[0], payload or message.SerializeToString(deterministic=True))
    data = json.dumps(json.loads(data) | {"signatures": []}).encode()
    device.refuses(wrong.RootContentError, device.receive_roots, [signed(data, ROOT_TYPE, world.holders)])


# Keys

RSA_KEY = rsa.generate_private_key(65537, 2048)


def test_one_rsa_key_under_two_schemes_counts_once(world: Installation) -> None:
    pss, pkcs = (
        SSlibKey.from_crypto(RSA_KEY.public_key(), scheme=scheme)
        for scheme in ("rsassa-pss-sha256", "rsa-pkcs1v15-sha256")
    )
    assert pss.keyid != pkcs.keyid
    assert fingerprint(pss) == fingerprint(pkcs)
    with pytest.raises(wrong.RootContentError, match="one key twice"):
        Role((pss, pkcs), 2)
    with pytest.raises(wrong.RootContentError, match="two key ids"):
        next_version(world, fleets={"a": FleetTrust(Role((pss,))), "b": FleetTrust(Role((pkcs,)))})
    with pytest.raises(wrong.RootContentError, match="revoked key"):
        next_version(world, fleets={"a": FleetTrust(Role((pss,)))}, revoked=(Revocation(pkcs, 1),))
    both = signed(
        next_version(world).to_envelope(), ROOT_TYPE, [CryptoSigner(RSA_KEY, pss), CryptoSigner(RSA_KEY, pkcs)]
    )
    assert len(read_envelope(both, ROOT_TYPE).signatures) == 2
    assert len(signers(read_envelope(both, ROOT_TYPE), [pss, pkcs])) == 1


@pytest.mark.parametrize("kind", ["ed25519", "p256", "p384", "rsa", "ml-dsa"])
def test_kinds_of_keys_that_hardware_and_clouds_have(world: Installation, kind: str) -> None:
    makers = {
        "ed25519": CryptoSigner.generate_ed25519,
        "p256": lambda: CryptoSigner.generate_ecdsa(scheme="ecdsa-sha2-nistp256"),
        "p384": lambda: CryptoSigner.generate_ecdsa(scheme="ecdsa-sha2-nistp384"),
        "rsa": lambda: CryptoSigner(RSA_KEY),
        "ml-dsa": CryptoSigner.generate_mldsa,
    }
    signer = makers[kind]()
    root = next_version(world, root=role([signer, *world.holders[:2]], 3))
    data = Installation.sign_root(root, [signer, *world.holders[:2]])
    assert next_root(world.root, data).root == root


def test_keys_that_are_not_accepted() -> None:
    pem = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    p256 = ec.generate_private_key(ec.SECP256R1()).public_key().public_bytes(*pem).decode()
    p384 = ec.generate_private_key(ec.SECP384R1()).public_key().public_bytes(*pem).decode()
    small = rsa.generate_private_key(65537, 1024).public_key().public_bytes(*pem).decode()  # noqa: S505
    ed = people(1)[0].public_key.keyval["public"]
    for keytype, scheme, public in (
        ("ecdsa", "ecdsa-sha2-nistp256", p384),
        ("ecdsa", "ecdsa-sha2-nistp256", p256 + "\n"),
        ("ecdsa", "ecdsa-sha2-nistp256", ed),
        ("ecdsa-sha2-nistp256", "ecdsa-sha2-nistp256", p256),
        ("rsa", "rsassa-pss-sha256", p256),
        ("rsa", "rsassa-pss-sha256", small),
        ("rsa", "pgp+rsa-pkcsv1.5", small),
        ("ed25519", "ed25519", ed.upper()),
        ("ed25519", "ed25519", ed[:-2]),
        ("ed25519", "ed25519", "zz" * 32),
        ("ed25519", "ed25519", ""),
        ("ed25519", "ed25519", "é"),
        ("ed25519", "ed25519", "0" * 10_000),
        ("", "", ""),
    ):
        with pytest.raises(wrong.PublicKeyError):
            normal_key(keytype, scheme, public)
    with pytest.raises(wrong.PublicKeyError, match="key id"):
        checked_key(CryptoSigner.generate_ed25519(keyid="ab").public_key)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_garbage_is_no_root(payload: bytes) -> None:
    with pytest.raises((EnvelopeError, wrong.TrustError)):
        Root.from_payload(payload)


VALID = payload_of(Installation().roots[0])


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(VALID) - 1), st.binary(max_size=3), st.integers(0, 4))
def test_a_damaged_payload_is_an_error_or_another_root(position: int, inserted: bytes, removed: int) -> None:
    damaged = VALID[:position] + inserted + VALID[position + removed :]
    try:
        root = Root.from_payload(damaged)
    except (EnvelopeError, wrong.TrustError):
        return
    assert root.to_message().SerializeToString(deterministic=True) in (damaged, VALID)
