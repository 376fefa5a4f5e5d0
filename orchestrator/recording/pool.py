"""The members that are recorded: opened in this process or served by Triton, asked in the same way."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.client.endpoint import Endpoint
from orchestrator.errors import DataError, InputError, repeated
from orchestrator.local import LocalMembers
from orchestrator.planner.goal import ENSEMBLE
from orchestrator.predictor.deriving import Deriver, local_deriver, ordered_derivers, served_deriver
from orchestrator.recording.scores import (
    about_member,
    check_class_names,
    require_exported,
    stated_kinds,
    with_scores,
)
from orchestrator.repository.index import class_names_by_member, common_names, readable_config, served_version
from orchestrator.rows.blocks import RowBlock, without_odd_texts
from orchestrator.spec import Manifest, Preprocess, RowLength, manifest_from_path
from orchestrator.spec.manifest import MANIFEST
from orchestrator.spec.output_kind import EXCLUSIVE
from orchestrator.spec.processor import core_count, instruction_sets, processor_flags
from orchestrator.spec.request import INPUT_DTYPES
from orchestrator.spec.rows import AnyRows
from orchestrator.spec.served_model import ModelInfo, TensorInfo, scores_output
from orchestrator.spec.validation import NAME

Rows = npt.NDArray[Any]
# Limits of one piece: memory for its rows, and work, so that an interrupt waits seconds and not minutes.
PIECE_BYTES, PIECE_MACS, PIECE_ROWS = 8 << 20, 1e11, 256
# The side that is assumed for images of any size when their memory is estimated.
USUAL_PX = 224
_APART = "record them apart, then join the files with `committee record --join`"


@dataclass(frozen=True, kw_only=True)
class RecordingPool:
    """Members that read the same rows and give scores of the same classes; mappings have a member's name as key.

    Args:
        manifests: of the members that were exported and whose manifest.json is there.
        cost: per row, of the length that the manifest names where lengths vary.
        lengths: of the members whose cost is known for every length of a row.
        asked: ONNX Runtime with its version, or the server's address.
        made_with: the ONNX Runtime and the instruction sets that compute the scores; empty where a server does.
        ask: scores of a member, float32 (n, k), from rows (n, *dims); may be called from several threads.
        workers: number of pieces that are asked about at once.
        kinds: output kind and what states it; members of unstated kind are absent.
        served: the version that a server answers from, None where that is not known.
        label_files: class names by the label file that a member's configuration names.
        derivers: models that make tensors which members read, or other such models, in any order.
    """

    infos: Mapping[str, ModelInfo]
    manifests: Mapping[str, Manifest]
    cost: Mapping[str, float]
    asked: str
    made_with: Mapping[str, Any]
    ask: Callable[[str, AnyRows], npt.NDArray[np.float32]]
    workers: int
    lengths: Mapping[str, RowLength] = field(default_factory=dict)
    kinds: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    served: Mapping[str, int | None] = field(default_factory=dict)
    label_files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    derivers: tuple[Deriver, ...] = ()

    def version_notes(self) -> list[str]:
        """Notes on manifests of other versions than are served, whose hashes are those of other files."""
        notes = []
        for name, manifest in self.manifests.items():
            described, served = manifest.file.partition("/")[0], self.served.get(name)
            if served is not None and described != str(served):
                notes.append(f"{name}: version {served} is served, its manifest.json describes {manifest.file}")
        return notes

    @property
    def names(self) -> tuple[str, ...]:
        """The members, in the order asked for."""
        return tuple(self.infos)

    @property
    def _read(self) -> dict[str, TensorInfo]:
        """What the members read, by name."""
        read: dict[str, TensorInfo] = {}
        for tensor in (tensor for info in self.infos.values() for tensor in info.inputs):
            # The strictest reader decides which text can be read.
            read[tensor.name] = max(tensor, read.get(tensor.name, tensor), key=lambda one: one.is_c_string)
        return read

    @property
    def info(self) -> ModelInfo:
        """The first member, with the inputs of all; where all have one of the same kind that is the first's."""
        first = next(iter(self.infos.values()))
        kinds = {tuple(map(_kind, info.inputs)) for info in self.infos.values()}
        if len(kinds) == 1 and len(first.inputs) == 1 and not self.derivers:
            is_c_string = any(tensor.is_c_string for tensor in self._read.values())
            return dataclasses.replace(
                first, inputs=(dataclasses.replace(first.inputs[0], is_c_string=is_c_string),)
            )
        _, inputs = ordered_derivers(self._read, self.derivers)
        return dataclasses.replace(first, name=", ".join(self.names), inputs=tuple(inputs.values()))

    def completed(self, block: RowBlock) -> RowBlock:
        """The rows with the tensors that models make; refused are rows of which one makes none, or of odd text."""
        derivers, _ = ordered_derivers(self._read, self.derivers)
        for one in derivers[::-1]:
            block = one.completed(block, self.info.inputs[0].name)
        return without_odd_texts(block, tuple(self._read.values()), only=self.info.inputs[0].name)

    def scores(self, name: str, rows: AnyRows) -> npt.NDArray[np.float32]:
        """Scores of a member, float32 (n, k), from rows that have the inputs of all."""
        if isinstance(rows, Mapping):
            rows = {tensor.name: rows[tensor.name] for tensor in self.infos[name].inputs}
        return self.ask(name, rows)

    def row_lengths(self, rows: AnyRows) -> dict[str, npt.NDArray[np.int64]]:
        """How long each row is for members whose cost depends on it: int64 (n,) by member."""
        found = {}
        for name, length in self.lengths.items():
            tensor = next(one for one in self.infos[name].inputs if one.name in length.pad)
            column = rows[tensor.name] if isinstance(rows, Mapping) else rows
            axis = tensor.shape.index(-1, 1) - 1
            found[name] = np.array([np.shape(row)[axis] for row in column], np.int64)
        return found

    @property
    def classes(self) -> int:
        """Number of classes k."""
        return _classes(next(iter(self.infos.values())))

    def class_names(self) -> tuple[str, ...] | None:
        """The members' class names, None where neither a manifest nor a label file has them.

        Raises InputError where two manifests have different ones.
        """
        stated = {name: manifest.labels for name, manifest in self.manifests.items() if manifest.labels}
        check_class_names(stated, classes=self.classes)
        return common_names(stated or self.label_files, classes=self.classes)

    def about(self) -> dict[str, dict[str, Any]]:
        """What records keep about each member, without the kind of its scores."""
        return {name: about_member(self.manifests.get(name), self.infos[name]) for name in self.names}

    def about_derived(self) -> dict[str, dict[str, Any]]:
        """What records keep of models that make tensors: their files by name; nothing where there are none."""
        models = {one.info.name: one.sha256 for one in self.derivers}
        return {"derived": models} if models else {}

    def preprocess(self) -> Preprocess:
        """How pictures become rows; InputError where no manifest says it, or two contradict each other."""
        known = {name: manifest.preprocess for name, manifest in self.manifests.items() if manifest.preprocess}
        got = "other rows from a picture for {second} than for {first}"
        _check_alike(known, got=got, expected="one `preprocess` for all", fix=_APART)
        if not known:
            raise InputError(
                f"pictures for {', '.join(self.names)}",
                got="no `preprocess` section in any manifest.json",
                fix="export them with --mean, --std and --resolution, so that they take pictures (0 and 1 where "
                "they want values of 0 to 1); name the `repository` of others; or use .npz rows",
            )
        return next(iter(known.values()))

    def piece_rows(self) -> int:
        """Rows per piece, by the members alone: a resumed run must cut the data in the same places."""
        row_bytes = 0
        for tensor in self.info.inputs:
            values = math.prod(USUAL_PX if size < 0 else size for size in tensor.shape[1:])
            row_bytes += values * np.dtype(INPUT_DTYPES.get(tensor.dtype, "float32")).itemsize
        work = sum(manifest.macs for manifest in self.manifests.values())
        rows = min(PIECE_ROWS, PIECE_BYTES // max(1, row_bytes), int(PIECE_MACS // max(1.0, work)))
        # Whole batches of 64, the usual limit, waste none.
        return max(1, rows - rows % 64 if rows > 64 else rows)


@contextlib.contextmanager
def opened_pool(
    names: Sequence[str],
    repository: Path,
    *,
    url: str | Endpoint | None = None,
    cost: Mapping[str, float] | None = None,
    output_kind: Mapping[str, str] | None = None,
    output_tensor: Mapping[str, str] | None = None,
    derive: Sequence[str] = (),
    timeout_s: float = 60.0,
    threads: int = 1,
) -> Iterator[RecordingPool]:
    """Opens members, and closes what has to be closed.

    Args:
        names: the members.
        repository: folder with their manifests.
        url: a server's gRPC endpoint; None opens them here.
        cost: cost per row of members that have no manifest, or instead of the manifest's MACs.
        output_kind: "logits" or "probabilities" of members whose manifest or served configuration does not say it.
        output_tensor: output with the scores of members of which several outputs may hold them.
        derive: models that make tensors which members read, such as tokenizers.
        timeout_s: longest wait for one answer of the server.
        threads: of each member in this process.

    Raises:
        RepositoryError, ClientError: a member cannot be opened or reached.
        InputError: they do not take the same rows, or not give the same classes.
        DataError: a name twice, one that no plan can have, a member without a cost, or of two kinds of scores.
    """
    _check_names(names)
    cost, kinds, tensors = cost or {}, output_kind or {}, output_tensor or {}
    for argument, given in (("cost", cost), ("output_kind", kinds), ("output_tensor", tensors)):
        if strange := sorted(set(given) - set(names)):
            got = f"{', '.join(strange)}, not recorded"
            raise DataError(f"`{argument}`", got=got, expected=f"one of {', '.join(names)}")
    if url is None:
        pool = _local(names, repository, cost, tensors, threads=threads)
        derivers = tuple(local_deriver(repository, name) for name in derive)
        yield _checked(dataclasses.replace(pool, derivers=derivers), kinds)
        return
    # A fifth of a second to import, and not needed for members in this process.
    from orchestrator.client.over_grpc import GrpcClient

    with GrpcClient(url, timeout_s=timeout_s, retries=4) as client:
        paths = {name: repository / name / MANIFEST for name in names}
        manifests = {name: manifest_from_path(path) for name, path in paths.items() if path.is_file()}
        infos = with_scores({name: client.metadata(name) for name in names}, manifests, tensors)

        def ask(name: str, rows: AnyRows) -> npt.NDArray[np.float32]:
            # By number: a version that is loaded meanwhile must not answer the second half.
            return client.ask(name, rows, version=infos[name].version, output=infos[name].scores)

        pool = RecordingPool(
            infos=infos,
            served={name: info.version for name, info in infos.items()},
            manifests=manifests,
            cost=_costs(names, manifests, cost),
            lengths=_lengths(manifests, cost),
            asked=str(url),
            made_with={},
            ask=ask,
            # The client keeps several parts of a piece in flight by itself.
            workers=1,
            label_files=class_names_by_member(repository, {name: info.scores for name, info in infos.items()}),
            derivers=tuple(served_deriver(client, name) for name in derive),
        )
        yield _checked(pool, kinds)


def _check_names(names: Sequence[str]) -> None:
    twice = repeated(names)
    if twice or not names:
        got = f"{', '.join(twice)} more than once" if twice else "none"
        raise DataError("members", got=got, expected="names of members, each once")
    bad = [name for name in names if NAME.match(name) is None]
    if bad:
        expected = "names of members, up to 128 letters, digits, '_', '.', '-'"
        raise DataError("members", got=", ".join(map(repr, bad)), expected=expected)
    if ENSEMBLE in names:
        raise DataError("members", got=ENSEMBLE, expected="another name: to a plan this one means all members")


def _local(
    names: Sequence[str],
    repository: Path,
    cost: Mapping[str, float],
    tensors: Mapping[str, str],
    *,
    threads: int,
) -> RecordingPool:
    # Slow to import, and not needed for members of a server.
    import onnxruntime

    require_exported(names, repository)
    members = LocalMembers(repository, names, threads=threads)
    manifests = {name: members.manifest(name) for name in names}
    infos = {name: members.info(name) for name in names}
    version = onnxruntime.__version__
    return RecordingPool(
        infos=with_scores(infos, manifests, tensors),
        served={name: served_version(repository / name, readable_config(repository / name)) for name in names},
        manifests=manifests,
        cost=_costs(names, manifests, cost),
        lengths=_lengths(manifests, cost),
        asked=f"onnxruntime {version}",
        made_with={"onnxruntime": version, "instruction_sets": list(instruction_sets(processor_flags()))},
        ask=members.ask,
        workers=core_count(),
        label_files=class_names_by_member(repository, {name: one.output.name for name, one in manifests.items()}),
    )


def _costs(
    names: Sequence[str], manifests: Mapping[str, Manifest], given: Mapping[str, float]
) -> dict[str, float]:
    known = {name: float(manifest.macs) for name, manifest in manifests.items()} | dict(given)
    missing = [name for name in names if name not in known]
    if missing:
        said = " ".join(f"`cost` {name}=..." for name in missing)
        raise DataError(
            f"cost of {', '.join(missing)}",
            got="no manifest.json in the repository",
            expected="the cost of every member",
            fix=f"say it with {said}, or name the repository with `repository`",
        )
    return {name: known[name] for name in names}


def _lengths(manifests: Mapping[str, Manifest], given: Mapping[str, float]) -> dict[str, RowLength]:
    """How rows of varying length cost, of members whose cost nobody has given."""
    return {name: one.length for name, one in manifests.items() if one.length is not None and name not in given}


def _kind(tensor: TensorInfo) -> str:
    """Dtype and dims of a tensor, the same from a manifest and from a server."""
    return f"{'STRING' if tensor.is_text else tensor.dtype} {list(tensor.shape[1:])}"


def _classes(info: ModelInfo) -> int:
    output = scores_output(info)
    return next(tensor.shape[-1] for tensor in info.outputs if tensor.name == output)


def _checked(pool: RecordingPool, kinds: Mapping[str, str]) -> RecordingPool:
    read: dict[str, dict[str, str]] = {}
    for name, info in pool.infos.items():
        for tensor in info.inputs:
            read.setdefault(tensor.name, {})[name] = _kind(tensor)
    got, expected = "{one} for {first}, {other} for {second}", "members that take the same rows"
    for kinds_of_one in read.values():
        _check_alike(kinds_of_one, got=got, expected=expected, fix=_APART)
    sizes = {name: _classes(info) for name, info in pool.infos.items()}
    got = "{one} classes of {first}, {other} of {second}"
    _check_alike(sizes, got=got, expected="members of the same classes")
    if pool.classes < 2:
        expected = f"a fixed number, 2 or more: {EXCLUSIVE}"
        raise InputError(f"member {pool.names[0]}", got=f"{pool.classes} classes", expected=expected)
    return dataclasses.replace(pool, kinds=stated_kinds(pool.infos, pool.manifests, kinds))


def _check_alike(values: Mapping[str, Any], *, got: str, expected: str, fix: str | None = None) -> None:
    """Refuses members with different values; `got` is a text with places for the first two of them."""
    first = next(iter(values), "")
    for second, other in values.items():
        if other != values[first]:
            text = got.format(first=first, second=second, one=values[first], other=other)
            raise InputError("members", got=text, expected=expected, fix=fix)
