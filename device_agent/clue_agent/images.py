"""Is this an image that may become a sample? And images of an app as PNG, in memory (no torch).

Pillow is loaded at the first image, so that a daemon that sees none does without it.
"""

import io
from typing import TYPE_CHECKING, Any, Union

from clue_agent.errors import SampleRefusedError

if TYPE_CHECKING:
    from numpy import uint8
    from numpy.typing import NDArray
    from PIL.Image import Image

Picture = Union[bytes, "Image", "NDArray[uint8]"]

MAX_IMAGE_BYTES = 16 << 20
# Decoding takes 3 bytes a pixel: 150 MB at the most.
MAX_PIXELS = 50_000_000
MIN_SIDE = 8


def check_image(data: bytes) -> None:
    """Return if ``data`` is a whole PNG or JPEG file of usable size; SampleRefusedError says what is wrong.

    Every pixel is decoded: a file that was cut short would otherwise be found out while forgetting.
    """
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise SampleRefusedError("the file is empty")
    if len(data) > MAX_IMAGE_BYTES:
        raise SampleRefusedError(f"the file has {len(data):,} bytes; at most {MAX_IMAGE_BYTES:,} are taken")
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            width, height = image.size
            if min(width, height) < MIN_SIDE or width * height > MAX_PIXELS:
                raise SampleRefusedError(
                    f"the image has {width} x {height} pixels; "
                    f"{MIN_SIDE} x {MIN_SIDE} to {MAX_PIXELS // 1_000_000} megapixels are taken"
                )
            image.load()
    except SampleRefusedError:
        raise
    except UnidentifiedImageError:
        raise SampleRefusedError("it is not a PNG or JPEG image") from None
    except Exception as error:  # Pillow's decoders raise many kinds on damaged files
        raise SampleRefusedError(
            f"the image is damaged: {' '.join(str(error).split()) or type(error).__name__}"
        ) from None


def encode(picture: Picture) -> bytes:
    """A picture of an app as the bytes of an image file, without touching the card.

    Bytes are returned as they are. A Pillow image and an array (uint8, shape (height, width, 3), RGB)
    become PNG. SampleRefusedError if it is none of these.
    """
    if isinstance(picture, bytes):
        return picture
    from PIL import Image

    image = picture if isinstance(picture, Image.Image) else _from_array(picture)
    if 0 in image.size:
        raise SampleRefusedError("the image has no pixels")
    buffer = io.BytesIO()
    try:
        image.convert("RGB").save(buffer, "PNG")
    except (OSError, ValueError) as error:
        raise SampleRefusedError(f"the image cannot be stored as PNG: {error}") from None
    return buffer.getvalue()


def _from_array(array: Any) -> "Image":
    from PIL import Image

    described = getattr(array, "__array_interface__", None)
    if not isinstance(described, dict):
        raise SampleRefusedError(
            f"a sample must be the bytes of a PNG or JPEG file, a Pillow image or an array, not {type(array).__name__}"
        )
    shape, kind = described["shape"], described["typestr"]
    if kind != "|u1" or len(shape) != 3 or shape[2] != 3:
        raise SampleRefusedError(f"an array must be uint8 of shape (height, width, 3), not {kind} of shape {shape}")
    if 0 in shape:
        raise SampleRefusedError("the image has no pixels")
    return Image.fromarray(array)
