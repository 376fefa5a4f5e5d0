"""Classifiers of tables become members that say what their framework says."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import lightgbm
import numpy as np
import onnxruntime
import pandas as pd
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier, RandomForestRegressor
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier

from export.sources import ExportOptions, identify
from orchestrator.pbtxt import config_from_path
from orchestrator.planner.records import records_from_path
from orchestrator.repository.check import check
from orchestrator.spec import TensorSpec, manifest_from_path
from tests.commands import printed_by
from tests.export.tables import (
    ANSWERS,
    ENCODED,
    PICKLED,
    TEXTS,
    Table,
    encoded,
    pickled,
    small_lightgbm,
    small_xgboost,
    tumours,
    wine,
    with_categories,
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


def with_gaps(*, categories: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """400 rows of two classes, told by whether the first column has a value and by the last, a category."""
    rng = np.random.default_rng(0)
    rows = rng.normal(5, 1, (400, 3)).astype(np.float32)
    rows[::3, 0] = np.nan
    if categories:
        rows[:, 2] = rng.integers(0, 6, 400)
    odd = np.isin(rows[:, 2], (1, 3, 4)) if categories else rows[:, 2] > 5
    return rows, (np.isnan(rows[:, 0]) ^ odd).astype(int)


GAPS: dict[str, Callable[[], Any]] = {
    "lightgbm": small_lightgbm,
    "xgboost": small_xgboost,
    "boosted": lambda: HistGradientBoostingClassifier(max_iter=8),
    "forest": lambda: RandomForestClassifier(8, random_state=0),
    "scaled tree": lambda: make_pipeline(StandardScaler(), DecisionTreeClassifier(max_depth=4)),
    "filled": lambda: make_pipeline(SimpleImputer(), GaussianNB()),
}


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("kind", GAPS)
def test_rows_of_the_comparison_lack_values_where_the_classifier_takes_that(tmp_path: Path, kind: str) -> None:
    rows, labels = with_gaps()
    made = GAPS[kind]().fit(rows, labels)
    source = stored(tmp_path, made)
    drawn = identify(source, ExportOptions()).load().rows(64, 1)
    for column in drawn.T:
        assert np.isnan(column).sum() > 3
        assert (column == 0).sum() > 3
        assert np.isfinite(column[column != 0]).sum() > 20
    member = exported(tmp_path / "repository", source)
    assert scores(member, rows) == pytest.approx(made.predict_proba(rows), abs=1e-5)


def test_no_row_lacks_a_value_where_the_classifier_refuses_that(tmp_path: Path) -> None:
    source, _ = pickled(tmp_path, "linear", wine())
    drawn = identify(source, ExportOptions()).load().rows(64, 1)
    assert np.isfinite(drawn).all()


def test_categories_of_lightgbm_are_compared_as_categories(tmp_path: Path) -> None:
    rows, labels = with_gaps(categories=True)
    data = lightgbm.Dataset(rows, labels, categorical_feature=[2])
    settings = {"objective": "binary", "verbose": -1, "num_threads": 1, "min_data_per_group": 5, "cat_smooth": 1}
    made = lightgbm.train(settings, data, 8)
    made.save_model(tmp_path / "it.txt")
    source = f"lightgbm:{tmp_path / 'it.txt'}"
    drawn = identify(source, ExportOptions()).load().rows(64, 1)
    assert {1, 3, 4} < set(drawn[:, 2][drawn[:, 2] >= 0])
    assert (drawn[:, 2] < 0).any(), "categories that it never saw"
    said_yes = scores(exported(tmp_path / "repository", source), rows)[:, 1]
    assert said_yes == pytest.approx(made.predict(rows), abs=1e-5)


@pytest.mark.parametrize("kind", ENCODED)
def test_pipelines_of_columns_say_what_they_said(tmp_path: Path, kind: str) -> None:
    rows, labels = with_categories()
    made = ENCODED[kind]().fit(rows, labels)
    member = exported(tmp_path / "repository", stored(tmp_path, made))
    assert scores(member, rows) == pytest.approx(made.predict_proba(rows), abs=1e-5)


def test_encoded_columns_are_drawn_from_their_categories_and_others_only_where_the_encoder_takes_them(
    tmp_path: Path,
) -> None:
    rows, labels = with_categories()
    for encoder, takes_others in (
        (OneHotEncoder(handle_unknown="ignore"), True),
        (OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1), True),
        (OrdinalEncoder(), False),
    ):
        made = encoded(encoder, DecisionTreeClassifier()).fit(rows, labels)
        drawn = identify(stored(tmp_path, made), ExportOptions()).load().rows(256, 1)
        others = set(drawn[np.isfinite(drawn[:, 2]), 2].tolist()) - {0, 1, 2, 3, 4}
        assert others == ({-1, 5, 104} if takes_others else set())
        assert {10, 20, 30} <= set(drawn[:, 3].tolist())


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: HistGradientBoostingClassifier(max_iter=8, categorical_features=[2]),
         "compares categories as numbers: fit it without categorical_features, behind OneHotEncoder"),
        (lambda: encoded(OneHotEncoder(), LogisticRegression()), "fit it with handle_unknown='ignore'"),
        (lambda: encoded(
            OneHotEncoder(min_frequency=90, handle_unknown="infrequent_if_exist"), LogisticRegression()),
         "its converter to ONNX refuses (Infrequent categories"),
    ],
)  # fmt: skip
def test_what_the_converter_does_not_keep_is_one_line_with_a_remedy(tmp_path: Path, make: Any, text: str) -> None:
    source = stored(tmp_path, make().fit(*with_categories()))
    code, out = said("member", source, "-o", str(tmp_path / "r"))
    assert (code, out.count("\n")) == (2, 0)
    assert text in out
    assert not (tmp_path / "r" / "made").exists()


@pytest.mark.parametrize("kind", ["linear", "lightgbm", "xgboost"])
def test_columns_are_read_by_the_names_a_classifier_was_fitted_on(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, labels = wine()
    names = [f"feature_{place}" for place in range(rows.shape[1])]
    frame = pd.DataFrame(rows, columns=names)
    made = small_xgboost() if kind == "xgboost" else PICKLED[kind]()
    source = stored(tmp_path, made.fit(frame, labels))
    member = exported(tmp_path / "repository", source)
    assert manifest_from_path(member / "manifest.json").columns == tuple(names)
    assert check(member.parent)
    frame["label"] = labels
    frame[[*names[5:], "label", *names[:5]]].to_csv(tmp_path / "in.csv", index=False)
    words = ["record", "made", "--data", tmp_path / "in.csv", "--repository", member.parent]
    printed = printed_by([*words, "-o", tmp_path / "out.npz"], capsys)
    assert "in this order" not in printed
    assert records_from_path(tmp_path / "out.npz").outputs["made"] == pytest.approx(scores(member, rows), abs=1e-6)
    said = printed_by([*words, "--columns", ",".join(names[::-1]), "-o", tmp_path / "no.npz"], capsys, code=2)
    assert "expected those it was fitted on, in this order: feature_0,feature_1" in said
    assert not (tmp_path / "no.npz").exists()


def test_sequences_whose_words_the_vocabulary_lacks_are_refused_and_others_are_not(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abcdefghijkl"), 6)) for _ in range(60)]
    texts = [text.replace(" ", "x ") + "x" for text in texts]

    def made(**settings: Any) -> str:
        vectorizer = TfidfVectorizer(ngram_range=(1, 2), **settings)
        classifier = make_pipeline(vectorizer, LogisticRegression(C=100)).fit(texts, rng.integers(0, 2, 60))
        return stored(tmp_path, classifier)

    exported(tmp_path / "repository", made(max_features=30))
    code, out = said("member", made(max_df=0.4), "-o", str(tmp_path / "r"))
    assert (code, out.count("\n")) == (2, 0)
    assert "parity: got batch 1" in out
    assert "it lacks some of sequences it has (" in out


def test_zeros_that_are_missing_values_are_refused(tmp_path: Path) -> None:
    rows, labels = with_gaps()
    rows = np.nan_to_num(rows, nan=0)
    made = lightgbm.LGBMClassifier(n_estimators=8, zero_as_missing=True, verbose=-1, n_jobs=1).fit(rows, labels)
    source = stored(tmp_path, made)
    code, out = said("member", source, "-o", str(tmp_path / "r"))
    assert (code, out.count("\n")) == (2, 0)
    assert f"{source} parity: got batch 1: differs by " in out
    assert "; fit it on NaN for what is missing; its conversion to ONNX does not keep zero_as_missing" in out


def test_trees_of_a_regression_are_no_classifier(tmp_path: Path) -> None:
    rows, labels = wine()
    lightgbm.LGBMRegressor(n_estimators=2, verbose=-1).fit(rows, labels).booster_.save_model(tmp_path / "it.txt")
    code, out = said("member", f"lightgbm:{tmp_path / 'it.txt'}", "-o", str(tmp_path / "r"))
    assert (code, out.count("\n")) == (2, 0)
    assert "got trees with the objective regression, expected a classifier: binary, multiclass" in out


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


def test_letters_that_become_small_otherwise_are_said(tmp_path: Path) -> None:
    texts = ["καλός δρόμος izmir", "κακός λόγος dağ"] * 10
    made = make_pipeline(TfidfVectorizer(), LogisticRegression(C=100)).fit(texts, ANSWERS)
    member = exported(tmp_path / "repository", stored(tmp_path, made))
    rows = np.array([["Καλός Δρόμος"], ["DAĞ, ΛΌΓΟΣ."]], np.object_)
    assert scores(member, rows, name="text")[0] == pytest.approx(made.predict_proba(rows[0])[0], abs=1e-5)
    (change,) = manifest_from_path(member / "manifest.json").original["changes"]
    assert "\u0130, and \u03a3 at the end of a word" in change


def test_words_that_a_graph_splits_otherwise_are_refused_with_a_remedy(tmp_path: Path) -> None:
    made = make_pipeline(TfidfVectorizer(token_pattern=r"\S+"), LogisticRegression(C=100))
    source = stored(tmp_path, made.fit(["one two good", "bad three"] * 10, ANSWERS))
    code, out = said("member", source, "-o", str(tmp_path / "r"))
    assert (code, out.count("\n")) == (2, 0)
    assert f"{source} parity: got batch 1: differs by " in out
    assert "; fit it with the usual token_pattern or with lowercase=False on texts in small letters" in out


def test_no_made_up_text_has_a_zero_byte(tmp_path: Path) -> None:
    made = make_pipeline(CountVectorizer(token_pattern=r"[a-z\0]+"), LogisticRegression(C=100))
    exported(tmp_path / "r", stored(tmp_path, made.fit(["one\0two good", "bad three"] * 10, ANSWERS)))


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
