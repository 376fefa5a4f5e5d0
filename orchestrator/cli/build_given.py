"""What `committee build` is given: its models, its files, and what can be refused before any work."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import DataError
from orchestrator.planner.goal import ENSEMBLE
from orchestrator.spec import manifest_from_path
from orchestrator.spec.cascade_json import PLAN
from orchestrator.spec.manifest import MANIFEST
from orchestrator.spec.validation import NAME

# Endings of rows in one file.
STORED = (".npz", ".npy", ".parquet")


@dataclass(frozen=True, kw_only=True)
class GivenModel:
    """One of the models given.

    Args:
        word: what `export member` is told, NAME=SOURCE or SOURCE; the name of a member that is there already.
        is_member: whether it lies in the repository already.
    """

    word: str
    is_member: bool


@dataclass(frozen=True, kw_only=True)
class BuildFiles:
    """What the steps leave.

    Args:
        repository: members and cascade.
        name: of the cascade.
        work: folder of records, plan and report.
    """

    repository: Path
    name: str
    work: Path

    @property
    def records(self) -> Path:
        """What every member says of every row."""
        return self.work / "records.npz"

    @property
    def plan(self) -> Path:
        """The cascade.json that is rendered."""
        return self.work / PLAN

    @property
    def report(self) -> Path:
        """Folder of the page about the plan."""
        return self.work / "report"


def models_from_words(words: list[str], repository: Path) -> list[GivenModel]:
    """The models as they were given.

    Raises:
        DataError: one that is none, or one alone.
    """
    if len(words) < 2:
        raise DataError("build", got="one model", expected="two or more: a cascade asks a cheap one first")
    models = [_model(word, repository) for word in words]
    if len(set(models)) < len(models):
        raise DataError("build", got="a model more than once", expected="different models")
    return models


def _model(text: str, repository: Path) -> GivenModel:
    name, equals, model = text.partition("=")
    if not equals or Path(text).exists():
        name, model = "", text
    elif NAME.match(name) is None:
        expected = "NAME=MODEL with letters, digits, '_', '.' and '-' in the name"
        raise DataError(f"model {text!r}", got=f"the name {name!r}", expected=expected)
    if (member := _member_of(model, repository)) is not None:
        if name:
            raise DataError(f"model {text}", got="another name for a member of the repository", expected=member)
        return GivenModel(word=member, is_member=True)
    source = _source(model, repository)
    return GivenModel(word=f"{name}={source}" if name else source, is_member=False)


def _member_of(model: str, repository: Path) -> str | None:
    """The member of the repository that a name or a folder means."""
    path = Path(model)
    folder = path if path.is_dir() and path.resolve().parent == repository.resolve() else repository / model
    is_name = NAME.match(folder.name) is not None and folder.parent.resolve() == repository.resolve()
    return folder.name if is_name and not path.is_file() and (folder / MANIFEST).is_file() else None


def _source(model: str, repository: Path) -> str:
    """What `export member` calls a model: paths are told from names by what is there."""
    path = Path(model)
    if model and path.is_file():
        return f"onnx:{os.path.normpath(model)}"
    if model and path.is_dir():
        if not (path / "config.json").is_file():
            raise DataError(f"model {model}", got="a folder without config.json", expected="one of transformers")
        return f"hf:{os.path.normpath(model)}"
    if not model or (":" not in model and (path.suffix or "/" in model)):
        raise DataError(
            f"model {model!r}",
            got="no such file",
            expected=f"an .onnx file, a folder, a source such as hf:ID, or a member of {repository}",
        )
    return model


def check_given(given: list[GivenModel], files: BuildFiles, *, data: str, export: list[str]) -> None:
    """Refuses, before any work, what a later step would refuse.

    Raises:
        DataError: naming the option.
    """
    if NAME.match(files.name) is None:
        raise DataError("--name", got=repr(files.name), expected="letters, digits, '_', '.' and '-'")
    taken = [one.word.partition("=")[0] for one in given if one.is_member or "=" in one.word]
    taken += [Path(one.word).stem.lower() for one in given if not one.is_member and "=" not in one.word]
    if files.name in taken:
        raise DataError("--name", got=f"{files.name}, a member", expected="another name for the cascade")
    if files.work.exists() and not files.work.is_dir():
        raise DataError("--work", got=f"{files.work}, a file", expected="a folder")
    path = Path(data)
    known = data.startswith("digits:") or (
        bool(data) and (path.is_dir() or (path.is_file() and path.suffix in STORED))
    )
    if not known:
        expected = f"digits:SPLIT, or a folder of pictures, {' or '.join(STORED)} that is there"
        raise DataError("--data", got=repr(data), expected=expected)
    if export and all(one.is_member for one in given):
        raise DataError("build", got=f"{export[0]} and no model to export", expected="models, or members alone")


def check_members(members: list[str], files: BuildFiles, *, data: str, reference: str | None) -> None:
    """Refuses, before rows are asked about, what only the exported members tell.

    Raises:
        DataError: naming the option.
    """
    if files.name in members:
        raise DataError("--name", got=f"{files.name}, a member", expected="another name for the cascade")
    if reference is not None and reference not in (*members, ENSEMBLE):
        raise DataError("--reference", got=reference, expected=f"one of {', '.join(members)}, or {ENSEMBLE}")
    blind = [name for name in members if manifest_from_path(files.repository / name / MANIFEST).preprocess is None]
    if blind and Path(data).is_dir() and next(Path(data).rglob("*.parquet"), None) is None:
        raise DataError(
            "build",
            got=f"pictures, and {', '.join(blind)} that take numbers",
            expected="members that take pictures",
            fix="give build --mean, --std and --resolution (0 and 1 where a model wants values of 0 to 1)",
        )
