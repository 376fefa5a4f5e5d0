"""Pictures of every kind that Pillow writes, and some that no decoder is ready for."""

import io
import struct
from typing import Any

import numpy as np
from PIL import Image

# ending -> Pillow's format
KINDS = {
    ".png": "PNG", ".jpg": "JPEG", ".gif": "GIF", ".webp": "WEBP", ".tif": "TIFF", ".bmp": "BMP", ".ppm": "PPM",
    ".avif": "AVIF",
}  # fmt: skip


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The picture as a file of that format."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(side: int = 16, *, seed: int = 0) -> Image.Image:
    """An RGB picture of random pixels."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3)).astype(np.uint8))


def jpeg_with_exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """A JPEG whose EXIF has these entries: tag, type, count, and value in 4 bytes."""
    entries_bytes = b"".join(struct.pack("<HHI4s", *entry) for entry in entries)
    tiff = b"II*\0" + struct.pack("<IH", 8, len(entries)) + entries_bytes + bytes(4)
    body = b"Exif\0\0" + tiff
    data = encoded(noise(), "JPEG")
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:]


SIDEWAYS = (0x0112, 3, 1, b"\x06\0\0\0")
# A resolution of undefined bytes, and a width that is text; Pillow meets them when it turns the picture.
BAD_EXIF = {
    "undefined": jpeg_with_exif((282, 7, 4, b"abcd"), SIDEWAYS),
    "text": jpeg_with_exif((256, 2, 4, b"abc\0"), SIDEWAYS),
}


def broken_avif() -> bytes:
    """An AVIF whose picture data are gone, though its head is whole."""
    data = encoded(noise(64), "AVIF")
    return data[: data.index(b"mdat") + 4] + bytes(len(data) - data.index(b"mdat") - 4)


def float_tiff(pixels: np.ndarray, *, low: float | None = None, high: float | None = None) -> bytes:
    """A TIFF of 32-bit floats, with a declared range where one is given."""
    tags = {340: low, 341: high}
    info = Image.Exif()
    for tag, value in tags.items():
        if value is not None:
            info[tag] = value
    return encoded(Image.fromarray(pixels.astype(np.float32)), "TIFF", tiffinfo=dict(info))
