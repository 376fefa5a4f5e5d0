"""Products that an Einsum sums up, taken pair by pair from the left, as runtimes do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from string import ascii_letters

from orchestrator.errors import ExportError


def einsum_macs(equation: str, shapes: Sequence[tuple[int, ...]], subject: str) -> int:
    """Multiply-accumulates of an Einsum.

    A label that only one of two operands has, and nobody needs later, is summed up before the product: additions,
    not counted. A product in which nothing is summed up is an elementwise one, not counted either.

    Args:
        equation: as in the operator, "..." included.
        shapes: of the operands.
        subject: the node, for messages.

    Raises:
        ExportError: equation and shapes do not fit.
    """
    terms, result = _labels(equation.replace(" ", ""), shapes, subject)
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        for label, size in zip(term, shape, strict=True):
            sizes[label] = max(size, sizes.get(label, 1))
    left, total = set(terms[0]), 0
    for index, term in enumerate(terms[1:], start=1):
        right, needed = set(term), set(result).union(*terms[index + 1 :])
        summed = (left & right) - needed
        kept = (left | right) & needed
        if summed:
            total += math.prod(sizes[label] for label in kept | summed)
        left = kept
    return total


def _labels(equation: str, shapes: Sequence[tuple[int, ...]], subject: str) -> tuple[list[str], str]:
    """Labels of each operand and of the result, the axes of "..." spelled out."""
    inputs, arrow, result = equation.partition("->")
    terms = inputs.split(",")
    spare = [letter for letter in ascii_letters if letter not in equation]
    widths = [
        len(shape) - len(term.replace("...", ""))
        for term, shape in zip(terms, shapes, strict=False)
        if "..." in term
    ]
    longest = max(widths, default=0)
    # Axes of "..." are matched from the right, as in broadcasting.
    common = "".join(spare[: max(longest, 0)])
    spelled = []
    for term, shape in zip(terms, shapes, strict=False):
        width = len(shape) - len(term.replace("...", "")) if "..." in term else 0
        spelled.append(term.replace("...", common[len(common) - width :] if width > 0 else ""))
    if len(terms) != len(shapes) or any(len(t) != len(s) for t, s in zip(spelled, shapes, strict=True)):
        raise ExportError(
            f"cost of {subject}",
            got=f"equation {equation} on shapes {list(shapes)}",
            expected="one that fits them",
        )
    if not arrow:
        letters = inputs.replace(",", "").replace(".", "")
        result = "..." + "".join(sorted(letter for letter in set(letters) if letters.count(letter) == 1))
    return spelled, result.replace("...", common)
