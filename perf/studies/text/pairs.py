"""What tokens and pairs of neighbouring ones say by themselves: a linear model of them, in a table of hashes.

Docstrings repeat phrases of their subpackage. An encoder that has seen few texts does not remember
them; this does.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as functional
from scipy import sparse
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.linear_model import SGDClassifier
from torch import nn

# A pair's place in the table is first * _FACTOR + second, and a token's its id, modulo the size of the table.
_FACTOR = 1_000_003
# Brings the rows that are fitted to lengths of about 1, as the penalty wants them.
_SCALE = 0.1
_PENALTY = 4e-6


class HashedPairs(nn.Module):
    """The sum of the weights of a text's tokens and pairs, over the square root of its length.

    Args:
        table: float32 (size, k).
        bias: float32 (k,).
    """

    table: torch.Tensor
    bias: torch.Tensor

    def __init__(self, table: npt.NDArray[np.float32], bias: npt.NDArray[np.float32]) -> None:
        super().__init__()
        # What is written down, and what the graph then says, are these weights.
        self.register_buffer("table", torch.from_numpy(table).half().float())
        self.register_buffer("bias", torch.from_numpy(bias))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Logits (n, k) of ids and mask, int64 (n, length); a pair counts where its second token does."""
        kept = attention_mask.unsqueeze(-1).to(torch.float32)
        size = self.table.shape[0]
        pairs = (input_ids[:, :-1] * _FACTOR + input_ids[:, 1:]) % size
        total = (functional.embedding(input_ids % size, self.table) * kept).sum(dim=1)
        total = total + (functional.embedding(pairs, self.table) * kept[:, 1:]).sum(dim=1)
        return total / kept.sum(dim=1).clamp(min=1).sqrt() + self.bias


def trained_pairs(
    rows: Sequence[Sequence[int]], labels: npt.NDArray[np.int64], *, bits: int, share: float
) -> HashedPairs:
    """The fitted model, its logits multiplied by `share`; the same rows give the same one.

    Args:
        rows: ids of n texts.
        labels: int64 (n,).
        bits: of the number of places in the table.
        share: how much its logits weigh beside an encoder's.
    """
    counts = _counts(rows, 1 << bits)
    words = TfidfTransformer(norm=None).fit(counts)
    lengths = np.array([len(row) for row in rows], np.float32)
    scaled = sparse.diags(_SCALE / np.sqrt(lengths)).dot(words.transform(counts)).tocsr()
    fitted = SGDClassifier(
        loss="log_loss", alpha=_PENALTY, max_iter=8, tol=None, average=True, random_state=0
    ).fit(scaled, labels)
    table = share * _SCALE * fitted.coef_.T * words.idf_[:, None]
    return HashedPairs(table.astype(np.float32), (share * fitted.intercept_).astype(np.float32))


def _counts(rows: Sequence[Sequence[int]], size: int) -> sparse.csr_matrix:
    """How often each place of the table is asked for by each text, float32 (n, size)."""
    places = []
    for row in rows:
        ids = np.asarray(row, np.int64)
        places.append(np.concatenate([ids, ids[:-1] * _FACTOR + ids[1:]]) % size)
    texts = np.repeat(np.arange(len(rows)), [len(one) for one in places])
    columns = np.concatenate(places)
    ones = np.ones(len(columns), np.float32)
    return sparse.coo_matrix((ones, (texts, columns)), shape=(len(rows), size)).tocsr()
