"""Tensors that models make from the rows for the members, such as token ids from text: in this process or served.

Each row is made by itself, so that its length is its own, and a row that cannot be made harms no other.
"""

import dataclasses
import importlib.util
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.client.sync import SyncClient
from orchestrator.errors import DataError, RefusedError, RepositoryError
from orchestrator.files import sha256_of_path
from orchestrator.rows.blocks import RefusedRow, RowBlock, id_at
from orchestrator.spec.deriving import DerivingManifest, deriving_from_path
from orchestrator.spec.manifest import MANIFEST
from orchestrator.spec.rows import Array, ready_rows, rows_at, stacked
from orchestrator.spec.served_model import ModelInfo, TensorInfo

# Rows that a server is asked about at once, one by one.
IN_FLIGHT = 8
# From n rows of a model's inputs, each (n, *dims), to its outputs; DataError where one of them cannot be made.
Derive = Callable[[Mapping[str, Array]], Mapping[str, Array]]


@dataclass(frozen=True, kw_only=True)
class Deriver:
    """A model that makes tensors; `sha256` of its file is None where nothing says."""

    info: ModelInfo
    derive: Derive
    sha256: str | None = None
    threads: int = 1

    @property
    def made(self) -> set[str]:
        """Names of the tensors that it makes."""
        return {tensor.name for tensor in self.info.outputs}

    def completed(self, block: RowBlock, only: str) -> RowBlock:
        """The rows with the tensors that the model makes; `only` is the name of rows that are one tensor."""
        rows = block.rows if isinstance(block.rows, Mapping) else {only: np.asarray(block.rows)}
        given = {tensor.name: rows[tensor.name] for tensor in self.info.inputs}
        ready = ready_rows(self.info, given) if len(block.ids) else given
        singles = [rows_at(ready, slice(row, row + 1)) for row in range(len(block.ids))]
        with ThreadPoolExecutor(self.threads) as pool:
            made = list(pool.map(self._made, singles))
        good = np.array([row for row, one in enumerate(made) if isinstance(one, Mapping)], np.int64)
        refused = [
            RefusedRow(id=id_at(block.ids, row), reason=str(one))
            for row, one in enumerate(made)
            if isinstance(one, DataError)
        ]
        kept = [one for one in made if isinstance(one, Mapping)]
        whole = dataclasses.replace(block, rows=rows).picked(good)
        assert isinstance(whole.rows, Mapping)
        outputs = {one.name: stacked([each[one.name][0] for each in kept]) for one in self.info.outputs}
        return dataclasses.replace(whole, rows={**whole.rows, **outputs}, refused=(*block.refused, *refused))

    def _made(self, row: Mapping[str, Array]) -> "Mapping[str, Array] | DataError":
        try:
            return self.derive(row)
        except DataError as error:
            return error


def served_deriver(client: SyncClient, name: str) -> Deriver:
    """A model that a server runs."""
    info = client.metadata(name)

    def derive(rows: Mapping[str, Array]) -> Mapping[str, Array]:
        try:
            return client.outputs(name, rows)
        except RefusedError as error:
            raise DataError(f"model {name}", got=error.got or str(error)) from error

    return Deriver(info=info, derive=derive, threads=IN_FLIGHT)


def local_deriver(repository: Path, name: str) -> Deriver:
    """An exported model, run in this process by the file that serves it.

    Raises RepositoryError where it is not exported or has other files, SpecError for a wrong manifest,
    ModuleNotFoundError where a package that it needs is not installed.
    """
    path = repository / name / MANIFEST
    if not path.is_file():
        fix = "export it with `python -m export tokenizer`, or ask it where it is served, with `url`"
        raise RepositoryError(f"model {name}", got=f"no {path}", expected="an exported model", fix=fix)
    manifest = deriving_from_path(path)
    for file, digest in manifest.data_files.items():
        place = repository / name / file
        if not place.is_file() or sha256_of_path(place) != digest:
            got = "another file than was exported" if place.is_file() else "no such file"
            raise RepositoryError(f"model file {place}", got=got, fix="export the model again")
    made, refusal = _loaded(repository / name / Path(manifest.file).parent, manifest)
    names = [one.name for one in manifest.inputs]

    def derive(rows: Mapping[str, Array]) -> Mapping[str, Array]:
        columns = [rows[name].reshape(len(rows[name]), -1).tolist() for name in names]
        values = [tuple(itertools.chain(*row)) for row in zip(*columns, strict=True)]
        try:
            arrays: Mapping[str, Array] = made(values if len(names) > 1 else [one for (one,) in values], ())
        except refusal as error:
            # A row that may be refused is the first of its call; the fault is of one of its tensors, or of all.
            place = getattr(error, "input", 0)
            subject = ", ".join(names) if place is None else names[place]
            raise DataError(subject, got=str(error).removeprefix("row 0: got ")) from error
        return arrays

    return Deriver(info=_info(manifest), derive=derive, sha256=manifest.sha256)


def _loaded(folder: Path, manifest: DerivingManifest) -> tuple[Any, Any]:
    """What makes the tensors, and the exception by which it refuses a row."""
    spec = importlib.util.spec_from_file_location(f"deriving_{manifest.name}", folder / "derive.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # It may import what lies beside it, as it does in the server.
    sys.path.insert(0, str(folder))
    try:
        spec.loader.exec_module(module)
        return module.load(folder, **manifest.options), module.REFUSAL
    finally:
        sys.path.remove(str(folder))


def _info(manifest: DerivingManifest) -> ModelInfo:
    sides = [
        tuple(TensorInfo(name=one.name, dtype=one.dtype, shape=(-1, *one.dims)) for one in side)
        for side in (manifest.inputs, manifest.outputs)
    ]
    return ModelInfo(
        name=manifest.name,
        platform="python",
        versions=("1",),
        max_batch_size=manifest.max_batch_size,
        inputs=sides[0],
        outputs=sides[1],
    )


def ordered_derivers(
    tensors: Mapping[str, TensorInfo], derivers: Sequence[Deriver]
) -> tuple[tuple[Deriver, ...], dict[str, TensorInfo]]:
    """The models in an order in which none makes what one before it reads, and what rows must bring, by name.

    `tensors` are those that members read. Raises DataError for a model that makes nothing of what is read.
    """
    known, left, done = dict(tensors), list(derivers), list[Deriver]()
    while left:
        read_later = {tensor.name for one in left for tensor in one.info.inputs}
        # What another one reads is made before that one runs, so it comes behind it here.
        one = next((one for one in left if not one.made & read_later), left[0])
        if not one.made & set(known):
            got = f"a model that makes {', '.join(sorted(one.made))}"
            raise DataError(f"`derive` {one.info.name}", got=got, expected=f"some of {', '.join(known)}")
        left.remove(one)
        done.append(one)
        known = {tensor.name: tensor for tensor in one.info.inputs} | known
        known = {name: tensor for name, tensor in known.items() if name not in one.made}
    return tuple(done), known
