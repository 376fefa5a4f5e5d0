"""Classifiers of tables become members that say what their framework says."""

import json
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import onnxruntime
import pytest
from sklearn.ensemble import RandomForestRegressor
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

from export.sources import ExportOptions, identify
from orchestrator.pbtxt import config_from_path
from orchestrator.repository.check import check
from orchestrator.spec import TensorSpec, manifest_from_path
from tests.export.tables import (
    ANSWERS,
    PICKLED,
    TEXTS,
    Table,
    pickled,
    small_lightgbm,
    small_xgboost,
    tumours,
    wine,
    words,
)
from tests.export.test_member_command import said


def exported(folder: Path, source: str, *more: str) -> Path:
    """The folder of the only member."""
    code, out = said("member", source, "-o", str(folder), "--name", "made", "--runtimes", "none", *more)
    assert code == 0, out
    return folder / "made"


def scores(member: Path, rows: np.ndarray, *, name: str = "features") -> np.ndarray:
    session = onnxruntime.InferenceSession(member / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    return session.run(["logits"], {name: rows})[0]


@pytest.mark.parametrize("kind", PICKLED)
@pytest.mark.parametrize("table", [wine, tumours], ids=["three", "two"])
def test_a_member_says_what_the_classifier_says_of_its_table(tmp_path: Path, kind: str, table: Any) -> None:
    rows, labels = table()
    source, original = pickled(tmp_path, kind, (rows, labels))
    member = exported(tmp_path / "repository", source)
    assert scores(member, rows) == pytest.approx(original.predict_proba(rows), abs=1e-5)
    manifest = manifest_from_path(member / "manifest.json")
    assert manifest.inputs == (TensorSpec(name="features", dtype="FP32", dims=rows.shape[1:]),)
    assert manifest.output_kind == "probabilities"
    assert manifest.labels == (None if labels.dtype.kind == "i" else ("benign", "malignant"))
    assert manifest.macs > 0
    assert manifest.parity["max_abs"] < 1e-5
    assert [one.name for one in config_from_path(member / "config.pbtxt").input] == ["features"]
    assert not check(member.parent).faults


@pytest.mark.parametrize("table", [wine, tumours], ids=["three", "two"])
def test_files_of_the_boosters_themselves_are_members_too(tmp_path: Path, table: Any) -> None:
    rows, labels = table()
    codes = np.unique(labels, return_inverse=True)[1]
    light, extreme = small_lightgbm().fit(rows, codes), small_xgboost().fit(rows, codes)
    light.booster_.save_model(tmp_path / "light.txt")
    extreme.save_model(tmp_path / "extreme.json")
    for source, original in (
        (f"lightgbm:{tmp_path}/light.txt", light),
        (f"xgboost:{tmp_path}/extreme.json", extreme),
    ):
        member = exported(tmp_path / "repository", source, "--force")
        assert scores(member, rows) == pytest.approx(original.predict_proba(rows), abs=1e-5)


def test_the_levels_of_the_trees_are_the_cost(tmp_path: Path) -> None:
    source, original = pickled(tmp_path, "forest", wine())
    manifest = manifest_from_path(exported(tmp_path / "r", source) / "manifest.json")
    assert manifest.macs == sum(tree.get_depth() for tree in original.estimators_)
    assert "comparisons" in manifest.macs_counter


@pytest.mark.parametrize("made", [GaussianNB(), KNeighborsClassifier()], ids=lambda made: type(made).__name__)
def test_what_a_classifier_keeps_says_where_rows_lie_and_what_it_costs(tmp_path: Path, made: Any) -> None:
    rows, labels = wine()
    joblib.dump(made.fit(rows, labels), tmp_path / "made.joblib")
    loaded = identify(f"sklearn:{tmp_path / 'made.joblib'}", ExportOptions()).load()
    drawn = loaded.rows(200, 1)
    assert len(set(made.predict(drawn))) == 3, "rows of every class"
    assert loaded.macs == np.asarray(getattr(made, "_fit_X", getattr(made, "theta_", None))).size


VECTORIZERS = {
    "usual": TfidfVectorizer(),
    "two words": TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
    "own words": CountVectorizer(token_pattern="[a-z]+", lowercase=False, binary=True),
}


@pytest.mark.parametrize("kind", VECTORIZERS)
def test_a_pipeline_of_words_is_a_member_that_reads_text(tmp_path: Path, kind: str) -> None:
    original = words(VECTORIZERS[kind])
    member = exported(tmp_path / "repository", stored(tmp_path, original))
    asked = ["A GOOD Film", "", "жизнь и ИЮЛЬ: эй't", "b x1 of  bad-film naïve", "grüsse 日本語"]
    rows = np.array(asked, np.object_).reshape(-1, 1)
    assert scores(member, rows, name="text") == pytest.approx(original.predict_proba(asked), abs=1e-5)
    manifest = manifest_from_path(member / "manifest.json")
    assert manifest.inputs == (TensorSpec(name="text", dtype="STRING", dims=(1,)),)
    assert manifest.labels == ("no", "yes")
    assert manifest.macs == len(original[0].vocabulary_) * 2
    assert not check(member.parent).faults


@pytest.mark.parametrize(
    "more", [{"strip_accents": "unicode"}, {"ngram_range": (1, 2), "stop_words": ["of"]}], ids=["accents", "stops"]
)
def test_words_that_no_graph_splits_likewise_are_one_line(tmp_path: Path, more: dict[str, Any]) -> None:
    original = make_pipeline(TfidfVectorizer(**more), LogisticRegression()).fit(TEXTS, ANSWERS)
    code, out = said("member", stored(tmp_path, original), "-o", str(tmp_path / "r"))
    assert (code, out.count("\n")) == (2, 0)
    assert "got Pipeline, which its converter to ONNX refuses (" in out


def test_a_member_that_is_up_to_date_is_left_alone(tmp_path: Path) -> None:
    source, _ = pickled(tmp_path, "boosted", wine())
    exported(tmp_path / "r", source)
    again = said("member", source, "-o", str(tmp_path / "r"), "--name", "made", "--runtimes", "none", "--json")[1]
    assert json.loads(again)["members"] == {"made": "up to date"}


def stored(folder: Path, value: object) -> str:
    joblib.dump(value, folder / "it.joblib")
    return f"sklearn:{folder / 'it.joblib'}"


def regression(table: Table) -> Any:
    return RandomForestRegressor(2).fit(*table)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (regression(wine()), "got RandomForestRegressor, expected a classifier with predict_proba"),
        (
            LinearSVC().fit(*wine()),
            "got LinearSVC, expected a classifier with predict_proba; train one that has it",
        ),
        (GaussianNB(), "got GaussianNB without n_features_in_, expected a classifier that was fitted"),
        ({"a": 1}, "got dict, expected a classifier with predict_proba"),
    ],
    ids=["regression", "no probabilities", "not fitted", "no model"],
)
def test_what_is_no_classifier_of_numbers_is_one_line(tmp_path: Path, value: object, says: str) -> None:
    code, out = said("member", stored(tmp_path, value), "-o", str(tmp_path / "r"))
    assert (code, out.count("\n")) == (2, 0)
    assert says in out
    assert not list((tmp_path / "r").glob("*"))


@pytest.mark.parametrize("kind", ["sklearn", "lightgbm", "xgboost"])
def test_a_file_that_does_not_load_is_one_line(tmp_path: Path, kind: str) -> None:
    (tmp_path / "it").write_bytes(b"no model")
    code, out = said("member", f"{kind}:{tmp_path / 'it'}", "-o", str(tmp_path / "r"))
    assert (code, out.count("\n")) == (2, 0)
    assert f"{kind}:{tmp_path / 'it'}: got a file that does not load (" in out
    assert "got no such file" in said("member", f"{kind}:{tmp_path / 'nothing'}", "-o", str(tmp_path / "r"))[1]
