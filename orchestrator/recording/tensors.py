"""Which output of a member holds its scores, and what records keep of members that were not exported."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.errors import DataError, RepositoryError
from orchestrator.recording.kinds import words_by_member
from orchestrator.spec import Manifest
from orchestrator.spec.manifest import MANIFEST
from orchestrator.spec.output_kind import SCORE_DTYPES
from orchestrator.spec.served_model import (
    ModelInfo,
    input_tensor,
    no_single_scores,
    possible_scores,
    scores_output,
)

OPTION = "--output-tensor"


def tensors_from_words(words: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """The option's words, NAME=TENSOR, by member.

    Raises:
        DataError: see `words_by_member`.
    """
    return words_by_member(OPTION, words, names, form="NAME=TENSOR", fits=bool)


def with_scores(
    infos: Mapping[str, ModelInfo], manifests: Mapping[str, Manifest], named: Mapping[str, str]
) -> dict[str, ModelInfo]:
    """The members, each with the name of the output that holds its scores.

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
            f"{OPTION} {info.name}={named}",
            got=f"{manifest.output.name} in its manifest.json",
            expected="one output",
            fix="leave the option out, or export the member again with the other output",
        )
    if named is None and manifest is not None and manifest.output.name in _served(info):
        return manifest.output.name
    if named is None:
        # Of a strange model, a name is no reason to take one output and not the other.
        if len(possible_scores(info)) != 1 and not info.answers_itself:
            raise no_single_scores(info, fix=f"name the one with the scores: {OPTION} {info.name}=TENSOR")
        return scores_output(info)
    dtype, shape = _served(info).get(named, ("", ()))
    if dtype not in SCORE_DTYPES or len(shape) != 2 or shape[1] < 2:
        listed = ", ".join(f"{name} {dtype}{list(shape)}" for name, (dtype, shape) in _served(info).items())
        raise DataError(
            f"{OPTION} {info.name}={named}",
            got=f"outputs {listed or 'none'}",
            expected="a floating-point one of [n, classes], with a fixed number of classes, 2 or more",
        )
    return named


def _served(info: ModelInfo) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {tensor.name: (tensor.dtype, tensor.shape) for tensor in info.outputs}


def row_dims_noted(
    members: Mapping[str, dict[str, Any]], row_dims: Callable[[], list[int]]
) -> dict[str, dict[str, Any]]:
    """What records keep of members, with the rows' own shape where a member takes several.

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
    """How a member is asked, as JSON values, for plans that are made where its configuration is not."""
    tensor = input_tensor(info)
    return {
        "input": {"name": tensor.name, "dtype": tensor.dtype, "dims": list(tensor.shape[1:])},
        "output": scores_output(info),
        "max_batch_size": info.max_batch_size,
        "instances": info.instances,
    }


def about_member(manifest: Manifest | None, info: ModelInfo) -> dict[str, Any]:
    """What records keep of a member, as JSON values, but for the kind of its scores."""
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
    """Refuses models that only a server can ask, saying how.

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
                fix=f"ask it where it is served, with --url and --cost {name}=..., or export it",
            )
