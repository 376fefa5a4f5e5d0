"""What members' scores are: in which output, logits or probabilities, of which classes; what records keep."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import DataError, InputError, RepositoryError
from orchestrator.spec import Manifest
from orchestrator.spec.answer import first_unlike
from orchestrator.spec.manifest import MANIFEST
from orchestrator.spec.output_kind import EXCLUSIVE, PARAMETER, SCORE_DTYPES, ScoreEvidence
from orchestrator.spec.served_model import (
    ModelInfo,
    listed_tensors,
    no_single_scores,
    possible_scores,
    scores_output,
)

Scores = npt.NDArray[np.float32]
_NAMED = "`output_kind`"
_SERVED = f"parameter {PARAMETER} of its served configuration"
# what states a kind -> the fix where the values contradict it
_MENDING = {
    "its manifest": "export it again, which finds the kind",
    _SERVED: "render or correct its config.pbtxt",
    _NAMED: f"leave {_NAMED} out",
    "its outputs": "record the members it is made of",
}


def with_scores(
    infos: Mapping[str, ModelInfo], manifests: Mapping[str, Manifest], named: Mapping[str, str]
) -> dict[str, ModelInfo]:
    """The members, as served or as opened here, with the name of the output that holds their scores.

    The manifest of a member says it, or the user: `named`. Raises DataError where that is none of the member's,
    holds no scores, or is not what its manifest says; InputError where nobody says it, and none or several may be
    it.
    """
    return {
        name: dataclasses.replace(info, scores=_scores(info, manifests.get(name), named.get(name)))
        for name, info in infos.items()
    }


def _scores(info: ModelInfo, manifest: Manifest | None, named: str | None) -> str:
    if named is not None and manifest is not None and named != manifest.output.name:
        raise DataError(
            f"`output_tensor` {info.name}={named}",
            got=f"{manifest.output.name} in its manifest.json",
            expected="one output",
            fix="leave `output_tensor` out, or export the member again with the other output",
        )
    outputs = {tensor.name: (tensor.dtype, tensor.shape) for tensor in info.outputs}
    if named is None and manifest is not None and manifest.output.name in outputs:
        return manifest.output.name
    if named is None:
        # In a model that was not exported, a name is no reason to take one output and not the other.
        if len(possible_scores(info)) != 1 and not info.answers_itself:
            raise no_single_scores(info, fix=f"name the one with the scores: `output_tensor` {info.name}=TENSOR")
        return scores_output(info)
    dtype, shape = outputs.get(named, ("", ()))
    if dtype not in SCORE_DTYPES or len(shape) != 2 or shape[1] < 2:
        listed = listed_tensors((name, *tensor) for name, tensor in outputs.items())
        raise DataError(
            f"`output_tensor` {info.name}={named}",
            got=f"outputs {listed}",
            expected="a floating-point one of [n, classes], with a fixed number of classes, 2 or more",
        )
    return named


def stated_kinds(
    infos: Mapping[str, ModelInfo], manifests: Mapping[str, Manifest], named: Mapping[str, str]
) -> dict[str, tuple[str, str]]:
    """The stated output kinds: member -> kind, what states it; `named` are those that the user names.

    Raises DataError where two say different things of one member.
    """
    stated = {}
    for name, info in infos.items():
        sources = {
            _NAMED: named.get(name),
            "its outputs": "probabilities" if info.answers_itself else None,
            _SERVED: info.output_kind,
            "its manifest": manifests[name].output_kind if name in manifests else None,
        }
        said = [(kind, who) for who, kind in sources.items() if kind is not None]
        if len({kind for kind, _ in said}) > 1:
            (one, first), (other, second) = said[:2]
            raise DataError(
                f"member {name}", got=f"{one} by {first}, {other} by {second}", expected="one kind of scores",
                fix=f"correct the one that is wrong: {_MENDING[second]}",
            )  # fmt: skip
        if said:
            stated[name] = said[0]
    return stated


def check_piece(name: str, scores: Scores, stated: Mapping[str, tuple[str, str]]) -> None:
    """Raises DataError for a piece that is not of the stated kind, before hours are spent on the rest."""
    seen = ScoreEvidence().with_scores(scores)
    # Scores that look like sigmoids so far may turn out as logits in later pieces.
    if name in stated and not seen.fills_unit_interval:
        kind_of(name, seen, stated)


def kind_of(name: str, seen: ScoreEvidence, stated: Mapping[str, tuple[str, str]]) -> str:
    """The kind of a member's scores: what is stated, or what the values look like where nothing is.

    Raises DataError where they are not what is said, or neither logits nor probabilities.
    """
    kind, who = stated.get(name, (seen.kind, ""))
    # Only the user can know that scores which look like something else are logits.
    believed = who == _NAMED and kind == "logits"
    if believed or not seen.contradicts(kind):
        return kind
    said = f"{kind}, as {who} says" if who else "logits or probabilities"
    if seen.adds_up:
        fix = f"{_MENDING[who]}; if they are logits all the same, say {_NAMED} {name}=logits"
    elif kind == "probabilities":
        fix = _MENDING[who]
    else:
        fix = f"{EXCLUSIVE}; if they are logits all the same, say {_NAMED} {name}=logits"
    raise DataError(f"member {name}", got=f"{seen}: {seen.looks}", expected=said, fix=fix)


def kind_notes(seen: Mapping[str, ScoreEvidence], stated: Mapping[str, tuple[str, str]]) -> list[str]:
    """Notes on members whose kind nothing states, or whose scores look like sigmoids."""
    notes = []
    for name, one in seen.items():
        if name not in stated:
            notes.append(f"nobody says what {name} gives: taken for {one.kind} by its values, see {_NAMED}")
        if one.in_unit_interval and one.varies and not one.adds_up:
            notes.append(f"{name} gives {one}: if these are sigmoids, it fits no cascade; {EXCLUSIVE}")
    return notes


def evidence_of(parts: Iterable[npt.NDArray[Any]]) -> ScoreEvidence:
    """What the values of scores (n, k), in parts, tell."""
    return functools.reduce(ScoreEvidence.with_scores, parts, ScoreEvidence())


def check_class_names(stated: Mapping[str, Sequence[str]], *, classes: int) -> None:
    """Raises InputError for manifests whose class names differ, or are not one per class."""
    first, names = next(iter(stated.items()), ("", ()))
    if stated and len(names) != classes:
        got = f"{len(names)} labels in the manifest"
        raise InputError(f"member {first}", got=got, expected=f"{classes}, one per class")
    for second, others in stated.items():
        place = first_unlike(names, others)
        if place is not None:
            one, other = (repr(said[place]) if place < len(said) else "not there" for said in (names, others))
            raise InputError(
                "members",
                got=f"other class names or another order of them in {second} than in {first}: "
                f"class {place} is {other} and {one}",
                expected="members of the same classes",
                fix="correct the manifest that is wrong, or take the names out of it",
            )


def about_member(manifest: Manifest | None, info: ModelInfo) -> dict[str, Any]:
    """What records keep about a member, as JSON values, without the kind of its scores.

    Of one without a manifest they keep its tensors and limits, for plans that are made without its configuration.
    """
    if manifest is None:
        inputs = [
            {"name": one.name, "dtype": "STRING" if one.is_text else one.dtype, "dims": list(one.shape[1:])}
            for one in info.inputs
        ]
        return {
            "sha256": None,
            "random_weights": False,
            **({"input": inputs[0]} if len(inputs) == 1 else {"inputs": inputs}),
            "output": scores_output(info),
            "max_batch_size": info.max_batch_size,
            "instances": info.instances,
        }
    about: dict[str, Any] = {"sha256": manifest.sha256, "random_weights": manifest.random_weights}
    if manifest.processor_flags:
        about["processor_flags"] = list(manifest.processor_flags)
    if manifest.data_files:
        about["data_files"] = manifest.data_files
    if manifest.preprocess is not None:
        about["preprocess"] = dataclasses.asdict(manifest.preprocess)
    return about


def require_exported(names: Sequence[str], repository: Path) -> None:
    """Raises RepositoryError for models that were not exported, which only a server can run."""
    for name in names:
        folder = repository / name
        if folder.is_dir() and not (folder / MANIFEST).is_file():
            got = f"no manifest.json in {folder}"
            fix = f"ask it where it is served, with `url` and `cost` {name}=..., or export it"
            raise RepositoryError(f"member {name}", got=got, expected="an exported member", fix=fix)
