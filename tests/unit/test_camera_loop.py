"""The example that an app starts from, on images and on cameras that are not there."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from live_writer import store_of, swap

import clue

EXAMPLE = Path(__file__).parents[2] / "examples" / "camera_loop.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    found = importlib.util.spec_from_file_location("camera_loop", EXAMPLE)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.fixture
def home(tmp_path: Path, bundle_dir: Path) -> Path:
    store_of(tmp_path / "home").install(bundle_dir)
    return tmp_path / "home"


def run(example: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["camera_loop.py", "--fps", "0", *map(str, arguments)])
    code = example.main()
    assert isinstance(code, int)
    return code


def test_a_folder_over_and_over_while_the_model_changes(
    example: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    home: Path,
    images_root: Path,
    bundle: clue.ModelBundle,
    tmp_path: Path,
) -> None:
    clue.save_bundle(tmp_path / "new", bundle.model, bundle.spec.with_forgotten("red"))
    digest = bundle.digest

    class Swapping(example.LiveModel):  # type: ignore[name-defined, misc]
        """The agent swaps before the sixth frame."""

        calls = 0

        def predict(self, frame: object) -> object:
            Swapping.calls += 1
            if Swapping.calls == 6:
                swap(store_of(home), tmp_path / "new")
                self.refresh()
            return super().predict(frame)

    monkeypatch.setattr(example, "LiveModel", Swapping)
    assert run(example, monkeypatch, "--home", home, "--folder", images_root / "test" / "red", "--frames", "12") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"model {digest[:12]}: 4 classes, forgotten: nothing"
    assert len(lines) == 1 + 12 + 1
    assert all(" red " in line for line in lines[1:6])
    assert lines[6] == f"------  the model is now {store_of(home).spec()[1][:12]}, forgotten: red"
    assert all("unknown" in line for line in lines[7:])
    assert "0.png" in lines[1]
    assert "0.png" in lines[12]  # ten images, then the first again


def test_a_file_that_is_no_image(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], home: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(b"not an image")
    assert run(example, monkeypatch, "--home", home, "--folder", tmp_path, "--frames", "2") == 0
    assert capsys.readouterr().out.count("cannot read the image") == 2


def test_what_cannot_run_is_said_in_one_line(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], home: Path, tmp_path: Path
) -> None:
    for name in ("cv2", "picamera2"):
        monkeypatch.setitem(sys.modules, name, None)
    empty = tmp_path / "empty"
    empty.mkdir()
    for arguments, problem in (
        (("--home", home), "no camera library"),
        (("--home", home, "--folder", empty), "no .png or .jpg image"),
        (("--home", empty, "--folder", empty), "no .png or .jpg image"),
    ):
        assert run(example, monkeypatch, *arguments) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert problem in line


def test_opencv_gives_bgr(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], home: Path
) -> None:
    red = np.full((48, 64, 3), 60, np.uint8)
    red[..., 2] = 220

    class VideoCapture:
        def __init__(self, number: int) -> None:
            self.frames = [(True, red)] * 3 + [(False, None)]

        def read(self) -> tuple[bool, object]:
            return self.frames.pop(0)

        def release(self) -> None:
            print("released")

    monkeypatch.setitem(sys.modules, "picamera2", None)
    monkeypatch.setitem(sys.modules, "cv2", SimpleNamespace(VideoCapture=VideoCapture))
    assert run(example, monkeypatch, "--home", home) == 1
    captured = capsys.readouterr()
    assert captured.out.count(" red ") == 3
    assert "released" in captured.out
    assert "gives no frame" in captured.err


def test_picamera2_gives_rgb(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], home: Path
) -> None:
    red = np.full((48, 64, 3), 60, np.uint8)
    red[..., 0] = 220

    class Picamera2:
        def __init__(self, number: int) -> None:
            if number:
                raise IndexError("list index out of range")

        def create_video_configuration(self, main: dict[str, object]) -> dict[str, object]:
            return main

        def configure(self, main: dict[str, object]) -> None:
            assert main["format"] == "BGR888"

        def start(self) -> None: ...

        def stop(self) -> None: ...

        def capture_array(self) -> object:
            return red

    monkeypatch.setitem(sys.modules, "picamera2", SimpleNamespace(Picamera2=Picamera2))
    assert run(example, monkeypatch, "--home", home, "--frames", "3") == 0
    assert capsys.readouterr().out.count(" red ") == 3
    assert run(example, monkeypatch, "--home", home, "--camera", "1") == 1
    assert "not connected" in capsys.readouterr().err
