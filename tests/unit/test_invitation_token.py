"""The token that a person carries to a device."""

import random

import pytest

from clue_protocol.invitation import Invitation, InvitationError

GOOD = Invitation("cams.example.org", 9444, bytes(range(16)), b"\xca" * 32, b"\x07" * 32, "0f" * 16)


@pytest.mark.parametrize("host", ["cams.example.org", "192.168.1.7", "fd00::7", "a"])
def test_it_says_what_was_put_in(host: str) -> None:
    made = Invitation(host, 65535, GOOD.secret, GOOD.ca_digest, GOOD.root_digest, GOOD.installation)
    token = made.to_token()
    assert Invitation.from_token(token) == made
    # As a chat or a narrow terminal may give it back.
    assert Invitation.from_token(f" {token[:40].lower()}\n  {token[40:]}\r\n") == made


def test_it_fits_a_small_qr_code() -> None:
    import segno

    token = GOOD.to_token()
    code = segno.make(token, error="l", micro=False)
    assert code.mode == "alphanumeric"
    assert len(token) <= 210
    assert int(code.version) <= 8  # 49 modules: 27 lines of a terminal


def test_no_typo_is_another_token() -> None:
    token, rng = GOOD.to_token(), random.Random(0)  # noqa: S311
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
    body = range(len("CLUE1-"), len(token))
    wrong = {token[:at] + token[at + 1 :] for at in body}  # one is missing
    wrong |= {token[:at] + letter + token[at + 1 :] for at in body for letter in alphabet if letter != token[at]}
    wrong |= {
        token[:at] + token[at + 1] + token[at] + token[at + 2 :] for at in body[:-1] if token[at] != token[at + 1]
    }
    wrong |= {token[: rng.choice(body)] for _ in range(50)} | {token + "A", token + "=", token + "AAAAAAAA"}
    wrong.discard(token)
    assert len(wrong) > 6000
    for text in wrong:
        with pytest.raises(InvitationError, match="not whole"):
            Invitation.from_token(text)


@pytest.mark.parametrize("text", ["", "clue", "CLUE2-ABC", "ghp_x", "A" * 100_000, "CLUE1-" + "A" * 100_000, "CLUE1-é"])
def test_what_is_none_is_one_line(text: str) -> None:
    with pytest.raises(InvitationError) as error:
        Invitation.from_token(text)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 150


def test_its_secret_does_not_end_in_a_log() -> None:
    assert GOOD.secret.hex() not in repr(GOOD)
    assert str(GOOD.secret) not in repr(GOOD)
