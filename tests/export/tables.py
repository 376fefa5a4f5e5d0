"""Classifiers of scikit-learn's own tables, trained in a moment and stored as people store them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import lightgbm
import numpy as np
import numpy.typing as npt
import xgboost
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

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
