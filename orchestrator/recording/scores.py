"""What members' scores are: in which output, logits or probabilities, of which classes; what records keep."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
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
    input_tensor,
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
    """The members with the name of the output that holds their scores.

    Args:
        infos: the members, as served or as opened here.
        manifests: of those that have one, which says it.
        named: outputs that the user names.

    Raises:
        DataError: the named one is none of the member's, holds no scores, or is not what its manifest says.
        InputError: nobody says it, and none or several may be the one.
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
    """The stated output kinds: member -> kind, what states it.

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
        yield _NAMED, named
    if info.answers_itself:
        yield "its outputs", "probabilities"
    if info.output_kind is not None:
        yield _SERVED, info.output_kind
    if manifest is not None:
        yield "its manifest", manifest.output_kind


def check_piece(name: str, scores: Scores, stated: Mapping[str, tuple[str, str]]) -> None:
    """Refuses a piece that is not of the stated kind, before hours are spent on the rest.

    Raises:
        DataError: see `kind_of`.
    """
    seen = ScoreEvidence().with_scores(scores)
    # Scores that look like sigmoids so far may turn out as logits in later pieces.
    if name in stated and not seen.fills_unit_interval:
        kind_of(name, seen, stated)


def kind_of(name: str, seen: ScoreEvidence, stated: Mapping[str, tuple[str, str]]) -> str:
    """The kind of a member's scores.

    Args:
        name: of the member.
        seen: its scores.
        stated: what is said of them; the values decide where nothing is.

    Raises:
        DataError: they are not what is said, or neither logits nor probabilities.
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
    seen = ScoreEvidence()
    for part in parts:
        seen = seen.with_scores(part)
    return seen


def check_class_names(stated: Mapping[str, Sequence[str]], *, classes: int) -> None:
    """Refuses manifests whose class names differ, or are not one per class.

    Args:
        stated: member name -> class names of its manifest.
        classes: k.

    Raises:
        InputError: naming the members.
    """
    if not stated:
        return
    first, names = next(iter(stated.items()))
    if len(names) != classes:
        got = f"{len(names)} labels in the manifest"
        raise InputError(f"member {first}", got=got, expected=f"{classes}, one per class")
    for second, others in stated.items():
        place = first_unlike(names, others)
        if place is not None:
            raise InputError(
                "members",
                got=f"other class names or another order of them in {second} than in {first}: "
                f"class {place} is {_shown(others, place)} and {_shown(names, place)}",
                expected="members of the same classes",
                fix="correct the manifest that is wrong, or take the names out of it",
            )


def _shown(names: Sequence[str], place: int) -> str:
    return repr(names[place]) if place < len(names) else "not there"


def row_dims_noted(
    members: Mapping[str, dict[str, Any]], row_dims: Callable[[], list[int]]
) -> dict[str, dict[str, Any]]:
    """What records keep about members, with the shape of the rows where a member takes any.

    Args:
        members: what they keep of each.
        row_dims: shape of a recorded row; asked only where it is needed.
    """
    noted = dict(members)
    for name, about in members.items():
        if -1 in about.get("input", {}).get("dims", ()):
            noted[name] = {**about, "input": {**about["input"], "dims": row_dims()}}
    return noted


def _served_facts(info: ModelInfo) -> dict[str, Any]:
    """A member's tensors and limits as JSON values, for plans that are made without its configuration at hand."""
    tensor = input_tensor(info)
    return {
        "input": {"name": tensor.name, "dtype": tensor.dtype, "dims": list(tensor.shape[1:])},
        "output": scores_output(info),
        "max_batch_size": info.max_batch_size,
        "instances": info.instances,
    }


def about_member(manifest: Manifest | None, info: ModelInfo) -> dict[str, Any]:
    """What records keep about a member, as JSON values, without the kind of its scores."""
    if manifest is None:
        return {"sha256": None, "random_weights": False, **_served_facts(info)}
    about: dict[str, Any] = {"sha256": manifest.sha256, "random_weights": manifest.random_weights}
    if manifest.processor_flags:
        about["processor_flags"] = list(manifest.processor_flags)
    if manifest.data_files:
        about["data_files"] = manifest.data_files
    if manifest.preprocess is not None:
        about["preprocess"] = dataclasses.asdict(manifest.preprocess)
    return about


def require_exported(names: Sequence[str], repository: Path) -> None:
    """Refuses models that were not exported, which only a server can run.

    Raises:
        RepositoryError: a member has a folder and no manifest.
    """
    for name in names:
        folder = repository / name
        if folder.is_dir() and not (folder / MANIFEST).is_file():
            raise RepositoryError(
                f"member {name}",
                got=f"no manifest.json in {folder}",
                expected="an exported member",
                fix=f"ask it where it is served, with `url` and `cost` {name}=..., or export it",
            )
