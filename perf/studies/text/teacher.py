"""What the encoders are taught besides labels: what larger models say of rows that they were not trained on.

Pieces of words, three to five letters, and pairs of words say more of short texts than words do, and too many are
needed for a served model. The encoders learn from what linear models of all of them say together.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import SGDClassifier
from sklearn.model_selection import GroupKFold

_FOLDS = 4
# What the pieces are that a teacher knows; the teachers' mean is taught.
_KINDS: tuple[dict[str, Any], ...] = (
    {"analyzer": "char_wb", "ngram_range": (3, 5), "min_df": 3},
    {"token_pattern": "[a-zA-Z0-9]+", "ngram_range": (1, 2)},
)
# Share of the target that is the teacher's, and how even the teacher's is made.
_SHARE, _EVEN = 0.5, 0.1


def targets_of(
    texts: Sequence[str], labels: npt.NDArray[np.int64], docstrings: Sequence[str], classes: int
) -> npt.NDArray[np.float32]:
    """The distribution that each row is taught, float32 (n, k): half its label, half what the teacher says.

    The teacher of a row has seen no row of its docstring, else it would only repeat the labels.
    """
    said = np.zeros((len(labels), classes), np.float32)
    for kind in _KINDS:
        pieces = TfidfVectorizer(sublinear_tf=True, dtype=np.float32, **kind).fit_transform(texts)
        for seen, unseen in GroupKFold(_FOLDS).split(pieces, labels, docstrings):
            teacher = SGDClassifier(
                loss="log_loss", alpha=2e-6, max_iter=8, tol=None, average=True, random_state=0
            )
            scores = teacher.fit(pieces[seen], labels[seen]).decision_function(pieces[unseen])
            odds = np.exp(scores - scores.max(axis=1, keepdims=True))
            said[unseen] += odds / odds.sum(axis=1, keepdims=True) / len(_KINDS)
    known = np.eye(classes, dtype=np.float32)[labels]
    mixed = (1 - _SHARE) * known + _SHARE * ((1 - _EVEN) * said + _EVEN / classes)
    return np.asarray(mixed, np.float32)
