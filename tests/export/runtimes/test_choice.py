from __future__ import annotations

import pytest

from export.runtimes.versions import runtimes_from_text
from orchestrator.errors import ExportError
from orchestrator.spec.triton import RELEASES, image_runtimes


def test_words_become_versions_oldest_first_and_once() -> None:
    known = image_runtimes()
    assert runtimes_from_text("images") == (known[0], known[-1])
    assert runtimes_from_text("all") == known
    assert runtimes_from_text("none") == ()
    assert runtimes_from_text("images,1.27.0") == (known[0], "1.27.0", known[-1])
    assert runtimes_from_text("1.9.0, all") == ("1.9.0", *known)
    assert runtimes_from_text("26.07, 1.9.0,1.19.2,24.10") == ("1.9.0", "1.19.2", "1.27.0")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("26.10", "whose ONNX Runtime no public source names"),
        ("26.70", "did you mean 26.10"),
        ("newest", "got 'newest'"),
        ("", "got ''"),
        ("1.19", "got '1.19'"),
        ("01.19.2", "got '01.19.2'"),
        ("1.019.2", "got '1.019.2'"),
        ("1.19.02", "got '1.19.02'"),
        ("\u0661.19.2", "got '\u0661.19.2'"),
        ("images,none", "got 'none'"),
        ("images,", "got ''"),
    ],
)
def test_what_is_no_version_is_one_line(text: str, says: str) -> None:
    with pytest.raises(ExportError) as caught:
        runtimes_from_text(text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_table_has_each_release_once_in_order_and_the_runtimes_grow() -> None:
    assert list(RELEASES) == sorted(RELEASES)
    versions = [tuple(map(int, version.split("."))) for version in image_runtimes()]
    assert versions == sorted(versions)
