"""Whatever a decoder raises is the refusal of that picture: one line, and nothing else."""

import io
import struct
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from orchestrator.errors import DataError
from orchestrator.rows.pictures import (
    PICTURE_ENDINGS,
    image_from_bytes,
    is_picture,
    row_from_bytes,
    row_from_image,
)
from orchestrator.spec import Preprocess
from tests.rows.broken_pictures import BAD_EXIF, KINDS, broken_avif, encoded, float_tiff, noise

PHOTO = Preprocess(mode="RGB", height_px=8, width_px=8, resize_px=8)
GREY = Preprocess(mode="L", height_px=8, width_px=8, value_min=0, value_max=1)
FILES = {kind: encoded(noise(), kind) for kind in KINDS.values()}
FILES["EXIF"] = BAD_EXIF["text"]
RAMP = np.linspace(0, 1, 64).reshape(8, 8)


def row(data: bytes, preprocess: Preprocess = PHOTO) -> np.ndarray:
    dims = (3 if preprocess.mode == "RGB" else 1, 8, 8)
    return row_from_bytes(data, preprocess, dtype="float32", dims=dims, what="x.jpg")


def refused(data: bytes, preprocess: Preprocess = PHOTO) -> str:
    with pytest.raises(DataError) as caught:
        row(data, preprocess)
    text = str(caught.value)
    assert text.startswith("x.jpg: got ")
    assert "\n" not in text
    return text


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
            made = row(data)
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
    assert "EXIF that cannot be read" in refused(BAD_EXIF[kind])


def test_a_broken_avif_is_refused() -> None:
    assert "no picture that can be read" in refused(broken_avif())


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
        row(FILES["PNG"])


def test_a_missing_pillow_is_no_fault_of_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError):
        row(FILES["PNG"])


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
    assert row(data, GREY)[0] == pytest.approx(RAMP, abs=0.51 / 255)


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
    assert row(encoded(deep, kind), GREY)[0] == pytest.approx(RAMP, abs=1 / 255)


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
    assert row(data, GREY)[0] == pytest.approx(1 - RAMP, abs=1 / 255)


def test_a_deep_picture_held_sideways_is_turned_and_scaled() -> None:
    pixels = np.zeros((8, 8), np.uint16)
    pixels[0] = 65_535
    exif = Image.Exif()
    exif[0x0112] = 6
    made = row(encoded(Image.fromarray(pixels), "PNG", exif=exif), GREY)[0]
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
