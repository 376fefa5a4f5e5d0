"""A picture becomes the row that the plan says; whatever a decoder raises is its refusal, in one line."""

import dataclasses
import io
import re
import struct
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import EpsImagePlugin, Image, ImageOps

from orchestrator.errors import DataError, InputError
from orchestrator.rows.pictures import (
    PICTURE_ENDINGS,
    image_from_bytes,
    is_picture,
    row_from_image,
)
from orchestrator.spec import Preprocess
from tests.rows.broken_pictures import BAD_EXIF, KINDS, encoded, float_tiff, noise

DIGIT = Preprocess(mode="L", height_px=8, width_px=8, value_min=0, value_max=16)
SMALL = Preprocess(mode="RGB", height_px=4, width_px=4, resize_px=4, value_min=-1, value_max=1)
PHOTO = Preprocess(mode="RGB", height_px=8, width_px=8, resize_px=8)
GREY = dataclasses.replace(DIGIT, value_max=1)
GREY_ROW = {"dtype": "float32", "dims": (1, 8, 8)}
FILES = {kind: encoded(noise(), kind) for kind in KINDS.values()}
FILES["EXIF"] = BAD_EXIF["text"]
RAMP = np.linspace(0, 1, 64).reshape(8, 8)


def row_of(data: bytes, preprocess: Preprocess = PHOTO) -> np.ndarray:
    dims = (3 if preprocess.mode == "RGB" else 1, 8, 8)
    return row_from_image(
        image_from_bytes(data, what="x.jpg"), preprocess, dtype="float32", dims=dims, what="x.jpg"
    )


def refused(data: bytes, preprocess: Preprocess = PHOTO) -> str:
    with pytest.raises(DataError) as caught:
        row_of(data, preprocess)
    text = str(caught.value)
    assert text.startswith("x.jpg: got ")
    assert "\n" not in text
    return text


@given(hnp.arrays(np.uint8, (8, 8)))
def test_a_picture_of_the_right_size_keeps_every_pixel(pixels: np.ndarray) -> None:
    row = row_of(encoded(Image.fromarray(pixels), "PNG"), DIGIT)
    assert (row.dtype, row.shape) == (np.float32, (1, 8, 8))
    assert row[0] == pytest.approx(pixels / 255 * 16, abs=1e-5)


def test_the_extremes_are_exact_and_inversion_swaps_them() -> None:
    pixels = np.zeros((8, 8), np.uint8)
    pixels[0, 0] = 255
    row = row_from_image(Image.fromarray(pixels), DIGIT, **GREY_ROW)
    assert (row[0, 0, 0], row[0, 0, 1]) == (16, 0)
    inverted = dataclasses.replace(DIGIT, invert=True)
    row = row_from_image(Image.fromarray(pixels), inverted, **GREY_ROW)
    assert (row[0, 0, 0], row[0, 0, 1]) == (0, 16)


@pytest.mark.parametrize(("layout", "shape"), [("CHW", (3, 4, 4)), ("HWC", (4, 4, 3))])
def test_channels_go_where_the_layout_says(layout: str, shape: tuple[int, ...]) -> None:
    image = Image.new("RGB", (4, 4), (255, 0, 51))
    how = dataclasses.replace(SMALL, layout=layout)
    row = row_from_image(image, how, dtype="float32", dims=shape)
    colour = row[:, 0, 0] if layout == "CHW" else row[0, 0]
    assert colour == pytest.approx([1, -1, -0.6], abs=1e-6)


def test_resizing_keeps_the_middle_of_a_wide_picture() -> None:
    pixels = np.zeros((8, 24, 3), np.uint8)
    pixels[:, 8:16] = 255
    row = row_from_image(Image.fromarray(pixels), SMALL, dtype="float32", dims=(3, 4, 4))
    assert row[:, :, 1:3] == pytest.approx(1)
    assert row[:, :, 0].max() > -1


def test_without_a_shorter_side_the_whole_picture_is_squeezed() -> None:
    pixels = np.zeros((8, 16), np.uint8)
    pixels[:, 8:] = 255
    row = row_from_image(Image.fromarray(pixels), DIGIT, **GREY_ROW)
    assert (row[0, 0, 0], row[0, 0, -1]) == (0, 16)


def test_a_crop_larger_than_the_picture_is_refused() -> None:
    how = dataclasses.replace(SMALL, resize_px=3)
    with pytest.raises(DataError, match="resize_px"):
        row_from_image(Image.new("RGB", (9, 9)), how, dtype="float32", dims=(3, 4, 4))


def test_transparent_parts_are_white() -> None:
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert row_from_image(clear, DIGIT, **GREY_ROW).min() == 16


def test_a_camera_held_sideways_is_turned_upright() -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(pixels), "JPEG", exif=exif, quality=100)
    row = row_of(data, DIGIT)
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


@pytest.mark.parametrize("data", [b"", b"not a picture", encoded(Image.new("L", (64, 64)), "PNG")[:40]])
def test_what_is_no_picture_is_one_line(data: bytes) -> None:
    refused(data)


def test_postscript_named_like_a_picture_never_reaches_ghostscript(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *words, **options: asked.append(words))
    assert "cannot identify" in refused(encoded(Image.new("L", (8, 8)), "EPS"))
    assert not asked


@pytest.mark.parametrize("kind", ["JPEG2000", "TGA", "ICO", "PCX", "DDS"])
def test_other_formats_of_pixels_are_read(kind: str) -> None:
    data = encoded(Image.new("RGB", (8, 8), "white"), kind)
    assert row_of(data, DIGIT).min() > 15


# -- whatever a decoder raises -------------------------------------------------------------------------


@st.composite
def corrupted(draw: st.DrawFn) -> bytes:
    """A picture with some bytes replaced, a part cut out, or its end gone."""
    data = bytearray(draw(st.sampled_from(sorted(FILES.items())))[1])
    # Half of the changes hit the head, where the structure is.
    places = st.one_of(st.integers(0, len(data) - 1), st.integers(0, min(200, len(data) - 1)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(places)
        change = draw(st.sampled_from(["set", "cut", "insert", "end"]))
        some = draw(st.binary(min_size=1, max_size=8))
        if change == "set":
            data[at : at + len(some)] = some
        elif change == "cut":
            del data[at : at + len(some)]
        elif change == "insert":
            data[at:at] = some
        elif len(data) > 20:
            del data[max(20, at) :]
    return bytes(data)


@settings(max_examples=400, deadline=None)
@given(corrupted())
def test_a_corrupted_picture_is_a_row_or_one_line(data: bytes) -> None:
    said = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            made = row_of(data)
        except DataError as error:
            said = str(error)
    if said is not None:
        assert said.startswith("x.jpg: got ")
        assert "\n" not in said
        return
    assert (made.shape, made.dtype) == ((3, 8, 8), np.float32)
    assert np.isfinite(made).all()


@pytest.mark.parametrize("kind", BAD_EXIF)
def test_exif_of_wrong_types_refuses_the_picture(kind: str) -> None:
    assert re.match(r"x\.jpg: got EXIF that cannot be read \(.*\); save it without EXIF", refused(BAD_EXIF[kind]))


@pytest.mark.parametrize(
    "raised",
    [
        struct.error("required argument is not an integer"), TypeError("'str' object"), SyntaxError("not a TIFF"),
        OSError("truncated"), MemoryError(), ValueError("two\nlines"), KeyError(7), OverflowError("too large"),
        RecursionError("deep"), AssertionError(), ZeroDivisionError("by zero"), EOFError(), IndexError("range"),
        AttributeError("none"), NotImplementedError("kind"), RuntimeError("decoder"), UserWarning("as an error"),
        Image.DecompressionBombError("of 200 megapixels"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_whatever_pillow_raises_is_the_refusal_of_that_picture(
    monkeypatch: pytest.MonkeyPatch, raised: Exception
) -> None:
    def turn(image: Image.Image) -> Image.Image:
        raise raised

    monkeypatch.setattr(ImageOps, "exif_transpose", turn)
    text = refused(FILES["PNG"])
    assert (" ".join(str(raised).split()) or type(raised).__name__) in text


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_while_decoding_is_no_refusal(
    monkeypatch: pytest.MonkeyPatch, raised: type[BaseException]
) -> None:
    def turn(image: Image.Image) -> Image.Image:
        raise raised

    monkeypatch.setattr(ImageOps, "exif_transpose", turn)
    with pytest.raises(raised):
        row_of(FILES["PNG"])


def test_a_missing_pillow_is_no_fault_of_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError):
        row_of(FILES["PNG"])


def test_an_opened_picture_that_does_not_decode_is_refused_too() -> None:
    opened = Image.open(io.BytesIO(FILES["PNG"][:200]))
    with pytest.raises(DataError, match="mine: got no picture that can be read"):
        row_from_image(opened, PHOTO, dtype="float32", dims=(3, 8, 8), what="mine")


def test_a_picture_that_would_be_enormous_is_refused() -> None:
    head = FILES["PNG"]
    huge = head[:16] + struct.pack(">II", 60_000, 60_000) + head[24:]
    assert "decompression bomb" in refused(huge) or "no picture" in refused(huge)


# -- samples of more than eight bits -----------------------------------------------------------------


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-2, 3), (0, 1e-3), (100, 60_000)])
def test_floats_are_scaled_from_the_range_that_the_file_declares(low: float, high: float) -> None:
    data = float_tiff(low + RAMP * (high - low), low=low, high=high)
    assert row_of(data, GREY)[0] == pytest.approx(RAMP, abs=0.51 / 255)


@pytest.mark.parametrize(
    "data",
    [
        float_tiff(RAMP),
        float_tiff(RAMP, low=0),
        float_tiff(RAMP, low=1, high=1),
        float_tiff(RAMP, low=0, high=np.inf),
        float_tiff(RAMP, low=-1.7e308, high=1.7e308),
        encoded(Image.fromarray((RAMP * 1e6).astype(np.int32)), "TIFF"),
    ],
)
def test_floats_and_wide_numbers_without_a_range_are_refused_with_what_to_do(data: bytes) -> None:
    text = refused(data, GREY)
    assert "SMinSampleValue" in text
    assert "save it with 8 or 16 bits" in text


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_floats_that_are_not_finite_are_refused_without_a_warning(value: float) -> None:
    pixels = RAMP.copy()
    pixels[3, 3] = value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "NaN" in refused(float_tiff(pixels, low=0, high=1), GREY)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_whatever_the_file(kind: str) -> None:
    deep = Image.fromarray((RAMP * 65_535).astype(np.uint16))
    assert row_of(encoded(deep, kind), GREY)[0] == pytest.approx(RAMP, abs=1 / 255)


def test_twelve_bits_in_a_tiff_are_scaled_from_twelve() -> None:
    # Two pixels, 0 and 4095, in three bytes; by hand, since Pillow only reads such files.
    tags = [(256, 2), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8 + 2 + 8 * 12 + 4), (278, 1), (279, 3)]
    entries = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in tags)
    data = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + b"\x00\x0f\xff"
    image = image_from_bytes(data, what="x")
    assert np.asarray(image).tolist() == [[0, 255]]


def test_white_that_is_zero_is_white_in_sixteen_bits_too() -> None:
    deep = Image.fromarray((RAMP * 65_535).astype(np.uint16))
    data = encoded(deep, "TIFF", tiffinfo={262: 0})
    assert row_of(data, GREY)[0] == pytest.approx(1 - RAMP, abs=1 / 255)


def test_a_deep_picture_held_sideways_is_turned_and_scaled() -> None:
    pixels = np.zeros((8, 8), np.uint16)
    pixels[0] = 65_535
    exif = Image.Exif()
    exif[0x0112] = 6
    made = row_of(encoded(Image.fromarray(pixels), "PNG", exif=exif), GREY)[0]
    assert (made[:, -1] == 1).all()
    assert (made[:, :-1] == 0).all()


# -- pictures and raw tensors ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS.values())
def test_every_kind_that_folders_take_is_known_by_its_first_bytes(kind: str) -> None:
    assert set(KINDS) <= PICTURE_ENDINGS
    data = FILES[kind]
    assert is_picture(data, tensor_bytes=None)
    assert is_picture(data, tensor_bytes=len(data) + 1)
    # The text of a PPM is too little to tell it from a tensor of just its size.
    assert is_picture(data, tensor_bytes=len(data)) == (kind != "PPM")
    assert image_from_bytes(data, what="x").size == (16, 16)


@given(st.binary(min_size=48, max_size=48))
def test_bytes_of_a_tensors_size_are_a_tensor(data: bytes) -> None:
    assert not is_picture(data, tensor_bytes=48)
