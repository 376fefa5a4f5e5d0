"""Members that ONNX Runtime runs in this process; `ask` is the same as that of the network clients."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import MemberError, RepositoryError
from orchestrator.files import sha256_of_path
from orchestrator.spec import Manifest, manifest_from_path
from orchestrator.spec.manifest import MANIFEST
from orchestrator.spec.rows import AnyRows, Array, groups_of_one_shape, ready_rows, rows_at
from orchestrator.spec.served_model import ModelInfo, TensorInfo
from orchestrator.spec.triton import ONNX_RUNTIME

CPU = ("CPUExecutionProvider",)


@dataclass(frozen=True)
class _Opened:
    manifest: Manifest
    session: Any
    classes: int

    @property
    def info(self) -> ModelInfo:
        """The member as a server would describe it."""
        manifest = self.manifest
        given = TensorInfo(name=manifest.output.name, dtype="FP32", shape=(-1, self.classes))
        taken = (TensorInfo(name=t.name, dtype=t.dtype, shape=(-1, *t.dims)) for t in manifest.inputs)
        return ModelInfo(
            name=manifest.name,
            platform=ONNX_RUNTIME,
            versions=(manifest.file.partition("/")[0],),
            max_batch_size=manifest.max_batch_size,
            inputs=tuple(replace(one, is_c_string=one.is_text) for one in taken),
            outputs=(given,),
        )


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

    def ask(self, name: str, rows: AnyRows) -> npt.NDArray[np.float32]:
        """Scores of an opened member, float32 (n, k), in runs of its batch limit; rows are those of `ready_rows`.

        Raises:
            RepositoryError: the member was not opened.
            InputError: the rows do not fit, or there are none.
            MemberError: ONNX Runtime failed, or gave something other than scores.
        """
        member = self._member(name)
        ready = ready_rows(member.info, rows)
        texts = [tensor.name for tensor in member.info.inputs if tensor.is_text]
        ready |= {text: _decoded(ready[text]) for text in texts}
        scores = np.empty((len(next(iter(ready.values()))), member.classes), np.float32)
        size = member.manifest.max_batch_size
        for places, group in groups_of_one_shape(ready):
            at = np.arange(len(scores)) if places is None else places
            for start in range(0, len(at), size):
                part = slice(start, start + size)
                scores[at[part]] = _run(member, rows_at(group, part))
        return scores

    def cost(self, name: str) -> float:
        """MACs per row."""
        return float(self._member(name).manifest.macs)

    def manifest(self, name: str) -> Manifest:
        """The member's manifest."""
        return self._member(name).manifest

    def classes(self, name: str) -> int:
        """Number of classes k."""
        return self._member(name).classes

    def info(self, name: str) -> ModelInfo:
        """The member as a server would describe it."""
        return self._member(name).info

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
    # Fatal ones alone: what fails is raised, and said in one line.
    options.log_severity_level = 4
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


def _run(member: _Opened, tensors: Mapping[str, Array]) -> npt.NDArray[np.float32]:
    what, rows = f"member {member.info.name}", len(next(iter(tensors.values())))
    try:
        scores = member.session.run([member.manifest.output.name], dict(tensors))[0]
    except Exception as error:
        raise MemberError(what, got=error, expected="scores") from error
    if scores.shape != (rows, member.classes):
        raise MemberError(what, got=f"scores of shape {scores.shape}", expected=(rows, member.classes))
    return np.asarray(scores, np.float32)


def _decoded(texts: Array) -> Array:
    """Text as ONNX Runtime takes it."""
    return np.array([text.decode() for text in texts.ravel()], object).reshape(texts.shape)
