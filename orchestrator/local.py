"""Members that ONNX Runtime runs in this process; `ask` is the same as that of the network clients."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import InputError, MemberError, RepositoryError
from orchestrator.files import sha256_of_path
from orchestrator.spec import Manifest, TensorSpec, manifest_from_path
from orchestrator.spec.manifest import MANIFEST
from orchestrator.spec.request import INPUT_DTYPES

CPU = ("CPUExecutionProvider",)


@dataclass(frozen=True)
class _Opened:
    manifest: Manifest
    session: Any
    classes: int


class LocalMembers:
    """Opened ONNX members of a model repository.

    Args:
        repository: folder with `<member>/manifest.json` and the model files that manifests name.
        names: the members to open.
        threads: intra-op threads of each session; with one, equal machines give equal bits.
        providers: execution providers, each a name or a name with options; the first must be available.

    Raises:
        RepositoryError: a member or its model is missing, not the one the manifest describes, or not readable.
        SpecError: a manifest is wrong.
    """

    def __init__(
        self, repository: Path, names: Sequence[str], *, threads: int = 1, providers: Sequence[Any] = CPU
    ) -> None:
        self._opened = {name: _opened(repository, name, threads, providers) for name in names}

    def ask(self, name: str, rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """An opened member's scores, float32 (n, k), of rows (n, *dims) in its dtype, in runs of its batch limit.

        Raises:
            RepositoryError: the member was not opened.
            InputError: the rows do not fit, or there are none.
            MemberError: ONNX Runtime failed, or gave something other than scores.
        """
        member = self._member(name)
        _check_rows(name, member.manifest.input, rows)
        size = member.manifest.max_batch_size
        return np.concatenate([_run(member, rows[start : start + size]) for start in range(0, len(rows), size)])

    def cost(self, name: str) -> float:
        """MACs per row."""
        return float(self._member(name).manifest.macs)

    def manifest(self, name: str) -> Manifest:
        """The member's manifest."""
        return self._member(name).manifest

    def classes(self, name: str) -> int:
        """Number of classes k."""
        return self._member(name).classes

    def _member(self, name: str) -> _Opened:
        if name not in self._opened:
            expected = f"one of {', '.join(self._opened) or 'none'}"
            raise RepositoryError(f"member {name}", got="not opened", expected=expected)
        return self._opened[name]


def _opened(repository: Path, name: str, threads: int, providers: Sequence[Any]) -> _Opened:
    folder, what = repository / name, f"member {name}"
    if not (folder / MANIFEST).is_file():
        fix = "export it, or name the repository that holds it"
        raise RepositoryError(what, got=f"no {MANIFEST} in {folder}", expected="an exported member", fix=fix)
    manifest = manifest_from_path(folder / MANIFEST)
    if manifest.file.endswith(".plan"):
        got = f"a TensorRT engine ({manifest.file}), which runs on its own GPU inside a server"
        named, source = manifest.engine.get("member"), "the member it was built from"
        fix = f"name {named}, {source}" if named else f"name {source}"
        raise RepositoryError(f"member {manifest.name}", got=got, expected="an ONNX member", fix=fix)
    session = _session(folder, manifest, threads, providers)
    return _Opened(manifest, session, _classes(folder / manifest.file, manifest, session))


def _session(folder: Path, manifest: Manifest, threads: int, providers: Sequence[Any]) -> Any:
    import onnxruntime  # slow to import, and not every user of this module opens sessions

    path = folder / manifest.file
    # Otherwise the answers of another file would be recorded, and planned with, as this member's.
    for name, digest in {manifest.file: manifest.sha256, **manifest.data_files}.items():
        try:
            found = sha256_of_path(folder / name)
        except OSError as error:
            raise _broken(folder / name, got=error.strerror, expected="the member's model") from error
        if found != digest:
            raise _broken(folder / name, got=f"sha256 {found}", expected=f"{digest} as in {MANIFEST}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        # By path, because weights may be in files beside the model.
        session = onnxruntime.InferenceSession(str(path), options, providers=list(providers))
    # ONNX Runtime's exceptions have no common base class.
    except Exception as error:
        raise _broken(path, got=error, expected="a model that ONNX Runtime opens") from error
    first = providers[0] if isinstance(providers[0], str) else providers[0][0]
    # ONNX Runtime silently leaves out a provider whose libraries do not load.
    if first not in session.get_providers():
        raise MemberError(f"member {manifest.name}", got=", ".join(session.get_providers()), expected=first)
    return session


def _classes(path: Path, manifest: Manifest, session: Any) -> int:
    """Compares the session's tensors with the manifest's, and gives the number of classes."""
    inputs = [tensor.name for tensor in session.get_inputs()]
    wanted = [tensor.name for tensor in manifest.inputs]
    shapes = {tensor.name: tensor.shape for tensor in session.get_outputs()}
    output = manifest.output
    if sorted(inputs) != sorted(wanted) or output.name not in shapes:
        got = f"inputs {', '.join(inputs)} and outputs {', '.join(shapes)}"
        raise _broken(path, got=got, expected=f"{', '.join(wanted)} and {output.name} as in {MANIFEST}")
    shape, size = shapes[output.name], output.dims[0] if len(output.dims) == 1 else 0
    if len(shape) != 2 or size < 1 or (isinstance(shape[1], int) and shape[1] != size):
        got = f"output {output.name} of shape {shape}, in {MANIFEST} {list(output.dims)}"
        raise _broken(path, got=got, expected="one score per class, the same number in both")
    return size


def _broken(path: Path, *, got: object, expected: str) -> RepositoryError:
    return RepositoryError(f"model file {path}", got=got, expected=expected, fix="export the member again")


def _check_rows(name: str, tensor: TensorSpec, rows: npt.NDArray[Any]) -> None:
    what = f"input {tensor.name} of member {name}"
    dtype = INPUT_DTYPES.get(tensor.dtype)
    if str(rows.dtype) != dtype:
        raise InputError(what, got=f"dtype {rows.dtype}", expected=f"{dtype} ({tensor.dtype})")
    same_rank = rows.ndim == len(tensor.dims) + 1
    sizes = zip(rows.shape[1:], tensor.dims, strict=False)
    if not same_rank or any(want not in (-1, size) for size, want in sizes):
        expected = ", ".join(["n", *(str(size) for size in tensor.dims)])
        raise InputError(what, got=f"shape {list(rows.shape)}", expected=f"[{expected}]")
    if len(rows) == 0:
        raise InputError(what, got="no rows", expected="at least one")


def _run(member: _Opened, rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    manifest = member.manifest
    what = f"member {manifest.name}"
    try:
        scores = member.session.run([manifest.output.name], {manifest.input.name: rows})[0]
    except Exception as error:
        raise MemberError(what, got=error, expected="scores") from error
    if scores.shape != (len(rows), member.classes):
        raise MemberError(what, got=f"scores of shape {scores.shape}", expected=(len(rows), member.classes))
    return np.asarray(scores, np.float32)
