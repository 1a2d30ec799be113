"""Labels of a device: what may be one, what it finds out by itself, and how they reach the enrolment document."""

import json
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from typer.testing import CliRunner

from clue_agent.cli import app
from clue_agent.config import load_config
from clue_agent.errors import ConfigError
from clue_agent.system_labels import system_labels
from clue_protocol.documents import MAX_LABELS, Enrolment, check_label
from clue_protocol.errors import DocumentError

ENROLMENT = Enrolment(
    "cam-1",
    CryptoSigner.generate_ed25519().public_key,
    "ecdsa-sha2-nistp384 AAAA",
    ("red",),
    "ab" * 32,
    "0.1.0",
    {"site": "paris", "timezone": "Europe/Paris"},
)


@pytest.mark.parametrize(
    ("key", "value"),
    [("site", "paris"), ("a", "b"), ("0", "0"), ("a.b_c-9", "Etc/GMT+5"), ("k" * 63, "v" * 63), ("mac", "00:1f:a-b_c")],
)
def test_good_labels(key: str, value: str) -> None:
    check_label(key, value)


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("", "x", "label key ''"),
        ("Site", "x", "small letters"),
        ("-a", "x", "label key"),
        ("a-", "x", "label key"),
        ("a\n", "x", "label key"),
        ("k" * 64, "x", "label key"),
        ("é", "x", "label key"),
        ("a", "", "value ''"),
        ("a", "x y", "value 'x y' of label 'a'"),
        ("a", "x\n", "value"),
        ("a", "v" * 64, "value"),
        ("a", "x,y", "value"),
        ("a", "x=y", "value"),
        ("a", "é", "value"),
    ],
)
def test_bad_labels(key: str, value: str, problem: str) -> None:
    with pytest.raises(DocumentError, match=problem):
        check_label(key, value)


def test_labels_travel_and_documents_of_before_have_none() -> None:
    assert Enrolment.from_json(ENROLMENT.to_json()) == ENROLMENT
    body = json.loads(ENROLMENT.to_json())
    del body["labels"]
    assert Enrolment.from_json(json.dumps(body)).labels == {}


@pytest.mark.parametrize(
    "labels", [7, None, ["a"], {"a": 7}, {"A": "b"}, {f"k{n}": "v" for n in range(MAX_LABELS + 1)}]
)
def test_bad_labels_in_a_document(labels: object) -> None:
    with pytest.raises(DocumentError, match="label"):
        Enrolment.from_json(json.dumps(json.loads(ENROLMENT.to_json()) | {"labels": labels}))


# What a device can tell by itself


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("TZ", raising=False)
    for folder in ("etc", "proc/device-tree"):
        (tmp_path / "root" / folder).mkdir(parents=True)
    return tmp_path / "root"


def test_nothing_is_known(root: Path) -> None:
    assert system_labels(root) == {}


@pytest.mark.parametrize(
    ("variable", "written", "linked", "zone"),
    [
        ("Europe/Paris", "Asia/Tokyo", "/usr/share/zoneinfo/America/Lima", "Europe/Paris"),
        (":/usr/share/zoneinfo/Europe/Paris", "", "", "Europe/Paris"),
        ("", "Asia/Tokyo\n", "/usr/share/zoneinfo/America/Lima", "Asia/Tokyo"),
        ("", "", "/usr/share/zoneinfo/America/Argentina/Salta", "America/Argentina/Salta"),
        ("", "", "../usr/share/zoneinfo/Etc/UTC", "Etc/UTC"),
        ("CET-1CEST,M3.5.0", "Atlantis/Deep", "/usr/share/zoneinfo/America/Lima", "America/Lima"),
        ("CET-1CEST,M3.5.0", "../../etc/passwd", "/somewhere/else", ""),
        ("America", "", "", ""),
    ],
)
def test_the_time_zone(
    root: Path, monkeypatch: pytest.MonkeyPatch, variable: str, written: str, linked: str, zone: str
) -> None:
    if variable:
        monkeypatch.setenv("TZ", variable)
    if written:
        (root / "etc/timezone").write_text(written)
    if linked:
        (root / "etc/localtime").symlink_to(linked)
    assert system_labels(root).get("timezone", "") == zone


@pytest.mark.parametrize(
    ("model", "hw"),
    [
        ("Raspberry Pi 3 Model B Plus Rev 1.3\0", "pi3"),
        ("Raspberry Pi 4 Model B Rev 1.4\0", "pi4"),
        ("Raspberry Pi 5 Model B Rev 1.0\0", "pi5"),
        ("Raspberry Pi Zero 2 W Rev 1.0\0", "zero2"),
        ("Raspberry Pi Zero W Rev 1.1\0", None),
        ("Raspberry Pi 400 Rev 1.0\0", None),
        ("Some other board\0", None),
    ],
)
def test_the_board(root: Path, model: str, hw: str | None) -> None:
    (root / "proc/device-tree/model").write_text(model)
    assert system_labels(root).get("hw") == hw


# clue-agent init


def init(tmp_path: Path, bundle_dir: Path, images_root: Path, *more: str) -> tuple[int, str]:
    home = str(tmp_path / "home")
    images = str(images_root / "train")
    arguments = ["init", "--device", "pi-1", "--model", str(bundle_dir), "--samples", images, "--home", home, *more]
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.output


def labels_of(*given: str) -> tuple[str, ...]:
    return tuple(part for label in given for part in ("--label", label))


def test_init_writes_labels_down_and_hands_them_over(
    tmp_path: Path, bundle_dir: Path, images_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    given = labels_of("site=paris", "hw=pi4", "note=a.b/c:d+e")
    code, output = init(tmp_path, bundle_dir, images_root, *given)
    assert code == 0
    assert "hw=pi4, note=a.b/c:d+e, site=paris, timezone=Asia/Tokyo" in output
    expected = {"site": "paris", "hw": "pi4", "note": "a.b/c:d+e", "timezone": "Asia/Tokyo"}
    assert Enrolment.from_json((tmp_path / "home" / "enrolment.json").read_bytes()).labels == expected
    assert load_config(tmp_path / "home" / "agent.toml").labels == expected


def test_what_is_given_stands(
    tmp_path: Path, bundle_dir: Path, images_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    init(tmp_path, bundle_dir, images_root, *labels_of("timezone=Europe/Paris"))
    assert load_config(tmp_path / "home" / "agent.toml").labels["timezone"] == "Europe/Paris"


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (("site",), "not KEY=VALUE"),
        (("=paris",), "label key"),
        (("Site=paris",), "label key"),
        (("site=new york",), "value"),
        (("site=a", "site=b"), "given as"),
        (tuple(f"k{n}=v" for n in range(33)), "at most 32"),
    ],
)
def test_labels_that_are_none_are_one_line_and_leave_nothing(
    tmp_path: Path, bundle_dir: Path, images_root: Path, given: tuple[str, ...], problem: str
) -> None:
    code, output = init(tmp_path, bundle_dir, images_root, *labels_of(*given))
    assert code == 2
    assert problem in " ".join(output.replace("│", " ").split())
    assert not (tmp_path / "home").exists()


def test_a_bad_label_in_the_configuration(tmp_path: Path, bundle_dir: Path, images_root: Path) -> None:
    init(tmp_path, bundle_dir, images_root)
    path = tmp_path / "home" / "agent.toml"
    text = path.read_text()
    marker = "[labels]\n" if "[labels]\n" in text else ""
    path.write_text(text.replace(marker, '[labels]\nSite = "x"\n') if marker else text + '\n[labels]\nSite = "x"\n')
    with pytest.raises(ConfigError, match=r"labels: label key 'Site'"):
        load_config(path)
