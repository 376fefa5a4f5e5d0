"""Members asked in this process answer as their model does, and refuse what they cannot answer."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import InputError, RepositoryError
from orchestrator.local import LocalMembers

REPOSITORY = Path(__file__).parents[1] / "model_repository"
NAME = "digits_small"


@pytest.fixture(scope="module")
def members():
    return LocalMembers(REPOSITORY, [NAME])


def rows_of(count):
    return np.random.default_rng(count).uniform(0, 16, (count, 1, 8, 8)).astype(np.float32)


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 200))
def test_chunking_changes_no_score(members, count):
    rows = rows_of(count)
    scores = members.ask(NAME, rows)
    assert scores.shape == (count, members.classes(NAME))
    assert scores.dtype == np.float32
    each = np.concatenate([members.ask(NAME, row[None]) for row in rows])
    np.testing.assert_allclose(scores, each, atol=1e-4)


@pytest.mark.parametrize(
    "rows", [rows_of(2).astype(np.float64), rows_of(2)[:, :, :7], rows_of(2)[0], rows_of(2)[:0]]
)
def test_rows_that_do_not_fit_are_the_callers_fault(members, rows):
    with pytest.raises(InputError, match=NAME):
        members.ask(NAME, rows)


def test_a_member_that_was_not_opened_is_named(members):
    for question in (members.cost, members.classes, members.manifest, lambda name: members.ask(name, rows_of(1))):
        with pytest.raises(RepositoryError, match="digits_huge"):
            question("digits_huge")


def test_a_model_that_is_not_the_manifests_is_refused(tmp_path):
    shutil.copytree(REPOSITORY / NAME, tmp_path / NAME)
    path = tmp_path / NAME / "1" / "model.onnx"
    model = onnx.load(path)
    model.producer_name = "somebody else"
    onnx.save(model, path)
    with pytest.raises(RepositoryError, match="sha256"):
        LocalMembers(tmp_path, [NAME])


@pytest.mark.parametrize("missing", ["manifest.json", "1/model.onnx"])
def test_a_missing_file_is_named(tmp_path, missing):
    shutil.copytree(REPOSITORY / NAME, tmp_path / NAME)
    (tmp_path / NAME / missing).unlink()
    with pytest.raises(RepositoryError, match=Path(missing).name):
        LocalMembers(tmp_path, [NAME])
