from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.cost.rules import einsum_macs
from orchestrator.errors import ExportError


class Watched:
    """A number that counts how often it was multiplied."""

    products = 0

    def __mul__(self, _: Any) -> Watched:
        Watched.products += 1
        return self

    def __add__(self, _: Any) -> Watched:
        return self

    __radd__ = __add__


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_an_einsum_of_two_costs_what_numpy_multiplies(data: st.DataObject) -> None:
    sizes = dict(zip("abcde", data.draw(st.lists(st.integers(1, 3), min_size=5, max_size=5)), strict=True))
    labels = st.lists(st.sampled_from("abcde"), min_size=1, max_size=3, unique=True)
    left, right = "".join(data.draw(labels)), "".join(data.draw(labels))
    # A label of one operand alone is kept: what is only summed up is no product.
    kept = sorted(set(left) ^ set(right)) + [x for x in sorted(set(left) & set(right)) if data.draw(st.booleans())]
    equation = f"{left},{right}->{''.join(kept)}"
    operands = []
    for term in (left, right):
        filled = np.empty([sizes[x] for x in term], object)
        filled.fill(Watched())
        operands.append(filled)
    Watched.products = 0
    np.einsum(equation, *operands)
    elementwise = not (set(left) & set(right)) - set(kept)
    want = 0 if elementwise else Watched.products
    assert einsum_macs(equation, [operand.shape for operand in operands], "e") == want


@pytest.mark.parametrize(
    ("equation", "shapes", "want"),
    [
        ("bij,bjk->bik", [(2, 3, 4), (2, 4, 5)], 120),
        # Without an arrow, labels that occur twice are summed up: b and j.
        ("bij,bjk", [(2, 3, 4), (2, 4, 5)], 120),
        ("ij,jk", [(3, 4), (4, 5)], 60),
        ("...ij,...jk->...ik", [(7, 2, 3, 4), (2, 4, 5)], 840),
        ("...ij,jk", [(7, 3, 4), (4, 5)], 420),
        ("ij,jk,kl->il", [(2, 3), (3, 4), (4, 5)], 24 + 40),
        ("ij,k->k", [(2, 3), (4,)], 0),
        # x is summed up before the product.
        ("ijx,jk->ik", [(2, 3, 7), (3, 4)], 24),
        ("ij->ji", [(2, 3)], 0),
        ("ij,ij->ij", [(2, 3), (2, 3)], 0),
    ],
)
def test_einsum_handles_dots_chains_and_no_arrow(equation: str, shapes: list[Any], want: int) -> None:
    assert einsum_macs(equation, shapes, "e") == want


def test_an_equation_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ExportError, match=r"cost of e: got equation ijk,jk"):
        einsum_macs("ijk,jk", [(2, 3), (3, 4)], "e")
