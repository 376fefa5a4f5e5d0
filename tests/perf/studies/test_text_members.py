"""The committed docstrings members, and the page about them."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs the export extra: make setup")
pytest.importorskip("skl2onnx", reason="a linear member needs the tabular extra: make setup")


from orchestrator.rows.docstrings import CLASSES
from orchestrator.spec import manifest_from_path
from perf.studies.text.command import REPOSITORY, md_from_results
from perf.studies.text.members import MEMBERS, TOKENIZER, training_settings
from perf.studies.text.study import TextMembers

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", MEMBERS)
def test_committed_members_are_what_their_manifests_say(name: str) -> None:
    folder = ROOT / REPOSITORY / name
    manifest = manifest_from_path(folder / "manifest.json")
    assert hashlib.sha256((folder / manifest.file).read_bytes()).hexdigest() == manifest.sha256
    assert manifest.training == training_settings(name, 0)
    assert manifest.labels == CLASSES
    assert manifest.parity["max_abs"] <= 1e-3


def test_the_committed_tokenizer_is_the_file_that_serves_tokenizers() -> None:
    served = ROOT / "export" / "deriving" / "served" / "tokens.py"
    assert (ROOT / REPOSITORY / TOKENIZER / "1" / "derive.py").read_bytes() == served.read_bytes()


def test_committed_members_stay_small() -> None:
    files = [path for path in (ROOT / REPOSITORY).parent.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 12_000_000


def test_committed_members_know_what_a_text_is_about() -> None:
    """A guard against broken files, not a result: those are in docs/text-study.md."""
    members = TextMembers(ROOT / REPOSITORY, list(MEMBERS))
    texts = [
        "Interpolate scattered points with a cubic spline.",
        "Minimise a function with bounds and constraints.",
    ]
    for name in MEMBERS:
        said = members.ask(name, texts)
        assert [CLASSES[place] for place in said.argmax(axis=1)] == ["scipy.interpolate", "scipy.optimize"]
        # A longer row beside it changes no answer.
        longer = members.ask(name, [texts[0], "A very long text, " * 40])
        np.testing.assert_allclose(longer[0], said[0], atol=1e-4)


def test_the_page_is_what_its_figures_give() -> None:
    page = ROOT / "docs" / "text-study.md"
    results = json.loads(page.with_suffix(".json").read_text())
    assert md_from_results(results) == page.read_text()
    without = {key: value for key, value in results.items() if key != "served"}
    assert "## Served" not in md_from_results(without)
    none = without | {"plans": [{"asked": "much", "said": "too few rows", "stages": None}]}
    assert "| much | none: too few rows |" in md_from_results(none)
    assert "No plan is cheaper" in md_from_results(none)
