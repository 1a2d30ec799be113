"""A camera app that always answers with the model that the agent has in use.

Frames come from a camera (picamera2 on a Raspberry Pi, else OpenCV), or with --folder from images,
over and over. One line is printed a frame, and one whenever the agent changed the model.

    python examples/camera_loop.py --home ~/.clue/agent
    python examples/camera_loop.py --home ~/.clue/agent --folder photos/ --fps 2 --frames 20
"""

import argparse
import itertools
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from clue.errors import ClueError, DataError
from clue_agent import LiveModel, Prediction
from clue_agent.errors import AgentError
from clue_agent.frames import Frame

IMAGES = {".png", ".jpg", ".jpeg"}


class NoCameraError(Exception):
    """There is no camera to be read, or no images in its place."""


def main() -> int:
    """Run the loop; returns the exit code."""
    options = parse()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    try:
        frames = folder_frames(options.folder) if options.folder else camera_frames(options.camera)
        with LiveModel(options.home, on_forgotten=options.on_forgotten, threads=options.threads) as live:
            print(f"model {live.digest[:12]}: {len(live.classes)} classes, {forgotten(live)}", flush=True)
            run(live, frames, options.fps, options.frames)
    except (AgentError, ClueError, NoCameraError) as error:
        print(f"camera_loop: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def run(live: LiveModel, frames: Iterator[tuple[str, Frame]], fps: float, count: int | None) -> None:
    """Answer ``count`` frames (None: all of them), at most ``fps`` a second (0: as fast as they come)."""
    digest = live.digest
    due = time.monotonic()
    for number, (name, frame) in enumerate(itertools.islice(frames, count), start=1):
        try:
            began = time.perf_counter()
            answer = live.predict(frame)
        except DataError as error:
            # A file that is no image is no reason to stop watching.
            print(f"{number:6}  {error}", flush=True)
        else:
            if answer.model_digest != digest:
                digest = answer.model_digest
                print(f"------  the model is now {digest[:12]}, {forgotten(live)}", flush=True)
            print(line(number, name, answer, time.perf_counter() - began), flush=True)
        if fps:
            due = max(due + 1 / fps, time.monotonic() - 1 / fps)
            time.sleep(max(0.0, due - time.monotonic()))


def line(number: int, name: str, answer: Prediction, seconds: float) -> str:
    """What is printed of one frame."""
    label = "unknown" if answer.label is None else f"{answer.label} {100 * answer.confidence:.0f} %"
    return f"{number:6}  {name:24}  {label:16}  energy {answer.free_energy:7.2f}  {1000 * seconds:6.1f} ms"


def forgotten(live: LiveModel) -> str:
    """The forgotten classes in words."""
    return f"forgotten: {', '.join(live.forgotten) or 'nothing'}"


def folder_frames(folder: Path) -> Iterator[tuple[str, Frame]]:
    """Every image at or below ``folder``, over and over."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGES)
    if not paths:
        raise NoCameraError(f"there is no .png or .jpg image in {folder}")
    return ((str(path.relative_to(folder)), path) for path in itertools.cycle(paths))


def camera_frames(number: int) -> Iterator[tuple[str, Frame]]:
    """Frames of a camera as RGB, by whichever library is here."""
    for name, frames in (("picamera2", picamera_frames), ("cv2", opencv_frames)):
        try:
            import_module(name)
        except ImportError:
            continue
        return frames(number)
    raise NoCameraError("no camera library: install picamera2 (Raspberry Pi) or opencv-python, or give --folder DIR")


def picamera_frames(number: int) -> Iterator[tuple[str, Frame]]:
    """Frames through libcamera."""
    try:
        camera = import_module("picamera2").Picamera2(number)
    except (IndexError, RuntimeError):
        raise NoCameraError(f"camera {number} is not connected, or in use; otherwise give --folder DIR") from None
    # The bytes are R, G, B: libcamera names its formats the other way round.
    camera.configure(camera.create_video_configuration(main={"size": (640, 480), "format": "BGR888"}))
    camera.start()
    try:
        while True:
            yield f"camera {number}", camera.capture_array()
    finally:
        camera.stop()


def opencv_frames(number: int) -> Iterator[tuple[str, Frame]]:
    """Frames through OpenCV, which gives BGR."""
    camera = import_module("cv2").VideoCapture(number)
    try:
        while True:
            there, frame = camera.read()
            if not there:
                raise NoCameraError(f"camera {number} gives no frame: is it connected? Otherwise give --folder DIR")
            yield f"camera {number}", frame[..., ::-1]
    finally:
        camera.release()


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--home", type=Path, default=Path("~/.clue/agent"), help="the agent's home")
    parser.add_argument("--camera", type=int, default=0, help="number of the camera")
    parser.add_argument("--folder", type=Path, help="images in place of a camera")
    parser.add_argument("--fps", type=float, default=2.0, help="frames a second at most; 0: as many as possible")
    parser.add_argument("--frames", type=int, help="stop after so many (default: never)")
    parser.add_argument("--threads", type=int, help="CPU threads of torch (default: its own choice)")
    parser.add_argument(
        "--on-forgotten",
        choices=("unknown", "next_best"),
        default="unknown",
        help="the answer to an image of a forgotten class",
    )
    options = parser.parse_args()
    if options.fps < 0 or (options.frames is not None and options.frames < 1):
        parser.error("--fps must not be negative, and --frames at least 1")
    return options


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        sys.exit(main())
