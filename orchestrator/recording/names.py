"""What recorded members call their classes: by their manifests, or by label files of their configurations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestrator.errors import InputError
from orchestrator.repository.class_names import Names, class_names_of, common_names
from orchestrator.spec.class_names import first_unlike


def class_names_by_member(repository: Path, outputs: Mapping[str, str | None]) -> dict[str, Names]:
    """Class names of the members that have any.

    Args:
        repository: that holds the members.
        outputs: member name -> its output with the scores, None where that is not known.
    """
    found = {name: class_names_of(repository / name, output) for name, output in outputs.items()}
    return {name: names for name, names in found.items() if names is not None}


def names_of_members(
    stated: Mapping[str, Names], label_files: Mapping[str, Names], *, classes: int
) -> Names | None:
    """What all members call their classes.

    Args:
        stated: member name -> names of its manifest, where that has any; they go first.
        label_files: the same of label files, which may spell names otherwise: then nothing is known.
        classes: k.

    Raises:
        InputError: two manifests call them differently, or one not all of them.
    """
    if not stated:
        return common_names(label_files, classes=classes)
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
    return names


def _shown(names: Sequence[str], place: int) -> str:
    return repr(names[place]) if place < len(names) else "not there"
