"""Classifiers of scikit-learn's own tables, trained in a moment and stored as people store them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import lightgbm
import numpy as np
import numpy.typing as npt
import xgboost
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.decomposition import PCA
from sklearn.ensemble import GradientBoostingClassifier, HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.feature_selection import SelectKBest
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    KBinsDiscretizer,
    OneHotEncoder,
    OrdinalEncoder,
    PolynomialFeatures,
    StandardScaler,
)

Table = tuple[npt.NDArray[np.float32], npt.NDArray[Any]]


def wine() -> Table:
    """178 rows of 13 features and three classes."""
    rows, labels = load_wine(return_X_y=True)
    return rows.astype(np.float32), labels


def tumours() -> Table:
    """569 rows of 30 features and two classes, which have names."""
    data = load_breast_cancer()
    return data.data.astype(np.float32), data.target_names[data.target]


def linear() -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))


def small_lightgbm() -> Any:
    return lightgbm.LGBMClassifier(n_estimators=8, num_leaves=7, verbose=-1, n_jobs=1)


def small_xgboost() -> Any:
    return xgboost.XGBClassifier(n_estimators=8, max_depth=3, n_jobs=1)


PICKLED: dict[str, Callable[[], Any]] = {
    "linear": linear,
    "forest": lambda: RandomForestClassifier(8, random_state=0),
    "boosted": lambda: HistGradientBoostingClassifier(max_iter=8),
    "lightgbm": small_lightgbm,
    "scaled_lightgbm": lambda: make_pipeline(StandardScaler(), small_lightgbm()),
}


TEXTS = [
    "a good film, naïve GRÜSSE",
    "a bad film: x1 of b",
    "fine day, ИЮЛЬ и жизнь",
    "rain again, 日本語 don't",
] * 5
ANSWERS = ["yes", "no"] * 10


def words(vectorizer: Any = None) -> Any:
    """A linear model on the words of a few texts."""
    made = make_pipeline(vectorizer or TfidfVectorizer(), LogisticRegression(C=100))
    return made.fit(TEXTS, ANSWERS)


def save_classifier(path: Path, kind: str) -> str:
    """Saves one of words, or one of PICKLED fitted on the wines; gives its source."""
    joblib.dump(words() if kind == "words" else PICKLED[kind]().fit(*wine()), path)
    return f"sklearn:{path}"


def pickled(folder: Path, kind: str, table: Table) -> tuple[str, Any]:
    """The source of a classifier fitted on a table, and the classifier."""
    made = PICKLED[kind]().fit(*table)
    joblib.dump(made, folder / f"{kind}.joblib")
    return f"sklearn:{folder / kind}.joblib", made


def with_categories() -> Table:
    """400 rows of two classes: two columns of numbers, then a category from 0 to 4 and one of 10, 20 and 30."""
    rng = np.random.default_rng(0)
    rows = rng.normal(5, 1, (400, 4)).astype(np.float32)
    rows[:, 2], rows[:, 3] = rng.integers(0, 5, 400), rng.choice([10, 20, 30], 400)
    return rows, ((rows[:, 0] > 5) ^ np.isin(rows[:, 2], (1, 3)) ^ (rows[:, 3] == 20)).astype(int)


def encoded(encoder: Any, last: Any, *, numbers: Any = "passthrough") -> Any:
    """A pipeline that encodes the columns with categories, and does to the others what `numbers` says."""
    return make_pipeline(ColumnTransformer([("kinds", encoder, [2, 3])], remainder=numbers), last)


ENCODED: dict[str, Callable[[], Any]] = {
    "one-hot": lambda: encoded(OneHotEncoder(handle_unknown="ignore"), LogisticRegression()),
    "one-hot, first dropped": lambda: encoded(
        OneHotEncoder(drop="first", handle_unknown="ignore"), LogisticRegression()
    ),
    "one-hot, numbers filled in and scaled": lambda: encoded(
        OneHotEncoder(handle_unknown="ignore"),
        LogisticRegression(),
        numbers=make_pipeline(SimpleImputer(), StandardScaler()),
    ),
    "categories filled in": lambda: encoded(
        make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore")),
        LogisticRegression(),
    ),
    "ordinal": lambda: encoded(
        OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1),
        RandomForestClassifier(8, random_state=0),
    ),
    "ordinal, known alone": lambda: encoded(OrdinalEncoder(), HistGradientBoostingClassifier(max_iter=8)),
    "everything in bins": lambda: make_pipeline(
        KBinsDiscretizer(4, encode="onehot-dense", quantile_method="averaged_inverted_cdf"), LogisticRegression()
    ),
    "products": lambda: make_pipeline(StandardScaler(), PolynomialFeatures(2), LogisticRegression(max_iter=500)),
    "chosen and projected": lambda: make_pipeline(
        SelectKBest(k=3), PCA(2), GradientBoostingClassifier(n_estimators=8)
    ),
}
