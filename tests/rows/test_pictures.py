import dataclasses
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import EpsImagePlugin, Image

from orchestrator.errors import DataError, InputError
from orchestrator.rows.pictures import row_from_bytes, row_from_image
from orchestrator.spec import Preprocess
from tests.rows.broken_pictures import BAD_EXIF

DIGIT = Preprocess(mode="L", height_px=8, width_px=8, value_min=0, value_max=16)
PHOTO = Preprocess(mode="RGB", height_px=4, width_px=4, resize_px=4, value_min=-1, value_max=1)


def png(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@given(hnp.arrays(np.uint8, (8, 8)))
def test_a_picture_of_the_right_size_keeps_every_pixel(pixels: np.ndarray) -> None:
    row = row_from_bytes(png(Image.fromarray(pixels)), DIGIT, dtype="float32", dims=(1, 8, 8))
    assert (row.dtype, row.shape) == (np.float32, (1, 8, 8))
    assert row[0] == pytest.approx(pixels / 255 * 16, abs=1e-5)


def test_the_extremes_are_exact_and_inversion_swaps_them() -> None:
    pixels = np.zeros((8, 8), np.uint8)
    pixels[0, 0] = 255
    row = row_from_image(Image.fromarray(pixels), DIGIT, dtype="float32", dims=(1, 8, 8))
    assert (row[0, 0, 0], row[0, 0, 1]) == (16, 0)
    inverted = dataclasses.replace(DIGIT, invert=True)
    row = row_from_image(Image.fromarray(pixels), inverted, dtype="float32", dims=(1, 8, 8))
    assert (row[0, 0, 0], row[0, 0, 1]) == (0, 16)


@pytest.mark.parametrize(("layout", "shape"), [("CHW", (3, 4, 4)), ("HWC", (4, 4, 3))])
def test_channels_go_where_the_layout_says(layout: str, shape: tuple[int, ...]) -> None:
    image = Image.new("RGB", (4, 4), (255, 0, 51))
    how = dataclasses.replace(PHOTO, layout=layout)
    row = row_from_image(image, how, dtype="float32", dims=shape)
    colour = row[:, 0, 0] if layout == "CHW" else row[0, 0]
    assert colour == pytest.approx([1, -1, -0.6], abs=1e-6)


def test_resizing_keeps_the_middle_of_a_wide_picture() -> None:
    pixels = np.zeros((8, 24, 3), np.uint8)
    pixels[:, 8:16] = 255
    row = row_from_image(Image.fromarray(pixels), PHOTO, dtype="float32", dims=(3, 4, 4))
    assert row[:, :, 1:3] == pytest.approx(1)
    assert row[:, :, 0].max() > -1


def test_without_a_shorter_side_the_whole_picture_is_squeezed() -> None:
    pixels = np.zeros((8, 16), np.uint8)
    pixels[:, 8:] = 255
    row = row_from_image(Image.fromarray(pixels), DIGIT, dtype="float32", dims=(1, 8, 8))
    assert (row[0, 0, 0], row[0, 0, -1]) == (0, 16)


def test_a_crop_larger_than_the_picture_is_refused() -> None:
    how = dataclasses.replace(PHOTO, resize_px=3)
    with pytest.raises(DataError, match="resize_px"):
        row_from_image(Image.new("RGB", (9, 9)), how, dtype="float32", dims=(3, 4, 4))


def test_transparent_parts_are_white_and_16_bit_greys_are_scaled() -> None:
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert row_from_image(clear, DIGIT, dtype="float32", dims=(1, 8, 8)).min() == 16
    deep = Image.fromarray(np.full((8, 8), 257 * 51, np.uint16))
    row = row_from_bytes(png(deep), DIGIT, dtype="float32", dims=(1, 8, 8))
    assert row == pytest.approx(51 / 255 * 16)


def test_a_camera_held_sideways_is_turned_upright() -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    data = png(Image.fromarray(pixels), "JPEG", exif=exif, quality=100)
    row = row_from_bytes(data, DIGIT, dtype="float32", dims=(1, 8, 8))
    assert row[0, :, -1].mean() > 12
    assert row[0, :, 0].mean() < 4


@pytest.mark.parametrize(
    ("dims", "good"), [((8, 8), True), ((-1, -1, -1), True), ((3, 8, 8), False), ((64,), False)]
)
def test_the_row_has_the_models_shape_or_is_refused(dims: tuple[int, ...], good: bool) -> None:
    image = Image.new("L", (8, 8))
    if good:
        assert row_from_image(image, DIGIT, dtype="float32", dims=dims).ndim == len(dims)
        return
    with pytest.raises(InputError, match="after preprocessing"):
        row_from_image(image, DIGIT, dtype="float32", dims=dims)


@given(st.integers(0, 255))
def test_whole_number_inputs_are_rounded_not_cut(value: int) -> None:
    image = Image.new("L", (8, 8), value)
    row = row_from_image(image, DIGIT, dtype="uint8", dims=(1, 8, 8))
    assert row.dtype == np.uint8
    assert row[0, 0, 0] == round(value / 255 * 16)


@pytest.mark.parametrize("data", [b"", b"not a picture", png(Image.new("L", (64, 64)))[:40]])
def test_what_is_no_picture_is_one_line(data: bytes) -> None:
    with pytest.raises(DataError, match=r"a\.png") as caught:
        row_from_bytes(data, DIGIT, dtype="float32", dims=(1, 8, 8), what="a.png")
    assert "\n" not in str(caught.value)


def test_postscript_named_like_a_picture_never_reaches_ghostscript(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *words, **options: asked.append(words))
    with pytest.raises(DataError, match="cannot identify"):
        row_from_bytes(png(Image.new("L", (8, 8)), "EPS"), DIGIT, dtype="float32", dims=(1, 8, 8), what="a.png")
    assert not asked


@pytest.mark.parametrize("kind", ["JPEG2000", "TGA", "ICO", "PCX", "DDS"])
def test_other_formats_of_pixels_are_read(kind: str) -> None:
    data = png(Image.new("RGB", (8, 8), "white"), kind)
    assert row_from_bytes(data, DIGIT, dtype="float32", dims=(1, 8, 8)).min() > 15


@pytest.mark.parametrize("kind", BAD_EXIF)
def test_broken_exif_is_said_to_be_that(kind: str) -> None:
    with pytest.raises(DataError, match=r"a\.jpg: got EXIF that cannot be read \(.*\); save it without EXIF"):
        row_from_bytes(BAD_EXIF[kind], DIGIT, dtype="float32", dims=(1, 8, 8), what="a.jpg")
