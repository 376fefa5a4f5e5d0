from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from orchestrator.errors import ExportError
from perf.__main__ import app
from perf.studies.glyphs_data import CLASSES, FONTS, GROUPS, SPLITS, draw, glyphs_split, master, store_split


def test_parts_have_the_stated_sizes_and_share_no_picture() -> None:
    assert {part: count for part, (_, count) in SPLITS.items()} == {
        "train": 60_000,
        "plan": 20_000,
        "test": 20_000,
    }
    spans = [range(first, first + count) for first, count in SPLITS.values()]
    assert len({number for span in spans for number in span}) == 100_000
    ids = [glyphs_split(part, rows=5).ids for part in SPLITS]
    assert len({str(i) for some in ids for i in some}) == 15


def test_every_letter_and_digit_belongs_to_exactly_one_class() -> None:
    held = Counter("".join(GROUPS.values()))
    assert len(held) == 62
    assert set(held.values()) == {1}
    assert all(name == group[0] for name, group in GROUPS.items())
    assert tuple(GROUPS) == CLASSES


def test_drawing_again_or_a_shorter_slice_gives_the_same_pictures() -> None:
    long, short = glyphs_split("plan", rows=60), glyphs_split("plan", rows=20)
    assert long.images.dtype == np.uint8
    assert long.images.shape == (60, 1, 32, 32)
    assert np.array_equal(long.images[:20], short.images)
    assert np.array_equal(long.labels[:20], short.labels)
    assert short.sha256() == glyphs_split("plan", rows=20).sha256() != long.sha256()
    assert not np.array_equal(short.images, glyphs_split("test", rows=20).images)


def test_classes_come_evenly_and_pictures_differ() -> None:
    part = glyphs_split("train", rows=3_000)
    counts = np.bincount(part.labels, minlength=len(CLASSES))
    # Of 3,000 fair draws over 53 classes, 57 each give or take 7.5: five deviations.
    assert counts.min() > 20
    assert counts.max() < 94
    assert len({image.tobytes() for image in part.images}) == 3_000


def test_every_font_draws_every_character_and_none_the_box_of_a_missing_one() -> None:
    for font in FONTS:
        shapes = {character: np.asarray(master(character, font)) for character in "".join(GROUPS.values())}
        assert all(shape.max() > 200 for shape in shapes.values())
        # A font without a character draws the same box for each: here no two are equal, but for l and I.
        assert len({shape.tobytes() for shape in shapes.values()}) >= 61, font


def test_easy_and_hard_pictures_mix() -> None:
    rng = np.random.default_rng(0)
    pictures = np.stack([draw("A", "DejaVuSans", rng=rng) for _ in range(300)]).astype(float)
    # Means of 4 x 4 pixels, so that noise is not taken for contrast.
    contrasts = np.ptp(pictures.reshape(300, 8, 4, 8, 4).mean(axis=(2, 4)), axis=(1, 2))
    assert np.mean(contrasts > 180) > 0.25
    assert np.mean(contrasts < 130) > 0.1


@pytest.mark.parametrize(
    ("part", "rows", "words"),
    [("tset", None, "train, plan, test"), ("plan", 20_001, "1 to 20000"), ("plan", 0, "1 to 20000")],
)
def test_a_part_that_is_not_there_is_one_line(tmp_path: Path, part: str, rows: int | None, words: str) -> None:
    with pytest.raises(ExportError, match=words):
        store_split(tmp_path / "a.npz", part, rows=rows, progress=lambda text: None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "got"), [("plan", "another kind of file"), ("a.npz", "a folder")])
def test_a_part_goes_to_an_npz_file_only(tmp_path: Path, name: str, got: str) -> None:
    (tmp_path / "a.npz").mkdir()
    result = CliRunner().invoke(app, ["glyphs-data", "--rows", "1", "-o", str(tmp_path / name)])
    assert isinstance(result.exception, ExportError)
    assert f"got {got}, expected a file name ending in .npz" in str(result.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_a_stored_part_is_what_was_drawn(tmp_path: Path) -> None:
    assert store_split(tmp_path / "new" / "plan.npz", "plan", rows=12, progress=lambda text: None) == 12
    drawn = glyphs_split("plan", rows=12)
    with np.load(tmp_path / "new" / "plan.npz") as stored:
        assert np.array_equal(stored["ids"], drawn.ids)
        assert np.array_equal(stored["images"], drawn.images)
        assert np.array_equal(stored["labels"], drawn.labels)
        assert tuple(stored["classes"]) == CLASSES
