"""Logits or probabilities: what members say of their scores, held against the scores that they give."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import DataError
from orchestrator.spec import Manifest
from orchestrator.spec.output_kind import EXCLUSIVE, OUTPUT_KINDS, PARAMETER, ScoreEvidence
from orchestrator.spec.served_model import ModelInfo

Scores = npt.NDArray[np.float32]
OPTION = "--output-kind"
_SERVED = f"parameter {PARAMETER} of its served configuration"
# who says so -> what to do where the values say otherwise
_MENDING = {
    "its manifest": "export it again, which finds the kind",
    _SERVED: "render or correct its config.pbtxt",
    OPTION: "leave the option out",
    "its outputs": "record the members it is made of",
}


def kinds_from_words(words: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """The option's words, NAME=KIND, by member.

    Raises:
        DataError: see `words_by_member`.
    """
    form = f"NAME=KIND, {' or '.join(OUTPUT_KINDS)},"
    return words_by_member(OPTION, words, names, form=form, fits=OUTPUT_KINDS.__contains__)


def words_by_member(
    option: str, words: Sequence[str], names: Sequence[str], *, form: str, fits: Callable[[str], bool]
) -> dict[str, str]:
    """What an option's words, NAME=VALUE, say of each member.

    Args:
        option: for messages.
        words: as given.
        names: the members that are recorded.
        form: what a word should look like.
        fits: whether a value can be used.

    Raises:
        DataError: a word of another form, a member that is not recorded, or one that is named twice.
    """
    found: dict[str, str] = {}
    for word in words:
        name, _, value = word.partition("=")
        if name not in names or name in found or not fits(value):
            expected = f"{form} with one of {', '.join(names)}, each once"
            raise DataError(option, got=repr(word), expected=expected)
        found[name] = value
    return found


def stated_kinds(
    infos: Mapping[str, ModelInfo], manifests: Mapping[str, Manifest], named: Mapping[str, str]
) -> dict[str, tuple[str, str]]:
    """What is said of members' scores before any is seen: member -> kind, who says so.

    Args:
        infos: the members, as served or as opened here.
        manifests: of those that have one.
        named: kinds that the user names.

    Raises:
        DataError: two say different things of one member.
    """
    stated = {}
    for name, info in infos.items():
        said = dict(_said(info, manifests.get(name), named.get(name)))
        if len(set(said.values())) > 1:
            (first, one), (second, other) = list(said.items())[:2]
            raise DataError(
                f"member {name}", got=f"{one} by {first}, {other} by {second}", expected="one kind of scores",
                fix=f"correct the one that is wrong: {_MENDING[second]}",
            )  # fmt: skip
        if said:
            who, kind = next(iter(said.items()))
            stated[name] = (kind, who)
    return stated


def _said(info: ModelInfo, manifest: Manifest | None, named: str | None) -> Iterable[tuple[str, str]]:
    if named is not None:
        yield OPTION, named
    if info.answers_itself:
        yield "its outputs", "probabilities"
    if info.output_kind is not None:
        yield _SERVED, info.output_kind
    if manifest is not None:
        yield "its manifest", manifest.output_kind


def check_piece(name: str, scores: Scores, stated: Mapping[str, tuple[str, str]]) -> None:
    """Refuses a piece that cannot be of the stated kind, before hours are spent on the rest.

    Raises:
        DataError: see `kind_of`.
    """
    seen = ScoreEvidence().with_scores(scores)
    # Of scores that only seem to be sigmoids the rest may say otherwise.
    if name in stated and not seen.fills_unit_interval:
        kind_of(name, seen, stated)


def kind_of(name: str, seen: ScoreEvidence, stated: Mapping[str, tuple[str, str]]) -> str:
    """What a member's scores are.

    Args:
        name: of the member.
        seen: its scores.
        stated: what is said of them; the values decide where nothing is.

    Raises:
        DataError: they are not what is said, or neither logits nor probabilities.
    """
    kind, who = stated.get(name, (seen.kind, ""))
    # Scores that have no bounds may still be anything; only the user knows.
    believed = who == OPTION and kind == "logits"
    if believed or not seen.contradicts(kind):
        return kind
    said = f"{kind}, as {who} says" if who else "logits or probabilities"
    if seen.adds_up:
        fix = f"{_MENDING[who]}; if they are logits all the same, say {OPTION} {name}=logits"
    elif kind == "probabilities":
        fix = _MENDING[who]
    else:
        fix = f"{EXCLUSIVE}; if they are logits all the same, say {OPTION} {name}=logits"
    raise DataError(f"member {name}", got=f"{seen}: {seen.looks}", expected=said, fix=fix)


def kind_notes(seen: Mapping[str, ScoreEvidence], stated: Mapping[str, tuple[str, str]]) -> list[str]:
    """What to say of members whose kind nobody stated, or whose scores look like sigmoids."""
    notes = []
    for name, one in seen.items():
        if name not in stated:
            notes.append(f"nobody says what {name} gives: taken for {one.kind} by its values, see {OPTION}")
        if one.in_unit_interval and one.varies and not one.adds_up:
            notes.append(f"{name} gives {one}: if these are sigmoids, it fits no cascade; {EXCLUSIVE}")
    return notes


def evidence_of(parts: Iterable[npt.NDArray[Any]]) -> ScoreEvidence:
    """What scores (n, k), part by part, show."""
    seen = ScoreEvidence()
    for part in parts:
        seen = seen.with_scores(part)
    return seen
