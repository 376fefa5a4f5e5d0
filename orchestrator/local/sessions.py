"""Members asked in this process with ONNX Runtime, with the same `ask` as the network clients."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import MemberError, RepositoryError
from orchestrator.spec import Manifest, manifest_from_path


class LocalMembers:
    """ONNX members of a model repository.

    Args:
        repository: folder with `<member>/manifest.json` and the model file it names.
        names: which members to open.
        threads: intra-op threads per session.

    Raises:
        RepositoryError: a member or its file is missing, or ONNX Runtime cannot open it.
        SpecError: a manifest is wrong.
    """

    def __init__(self, repository: Path, names: Sequence[str], *, threads: int = 1) -> None:
        self._manifests: dict[str, Manifest] = {}
        self._sessions: dict[str, Any] = {}
        for name in names:
            if not (repository / name).is_dir():
                raise RepositoryError(f"member {name}", got=f"no folder {repository / name}", fix="export it first")
            manifest = manifest_from_path(repository / name / "manifest.json")
            self._manifests[name] = manifest
            self._sessions[name] = _session(repository / name / manifest.file, threads)

    def manifest(self, name: str) -> Manifest:
        """The member's manifest."""
        return self._manifests[name]

    def cost(self, name: str) -> float:
        """MACs per row."""
        return float(self._manifests[name].macs)

    def ask(self, name: str, rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """What a member says of rows.

        Args:
            name: one of the names given.
            rows: (n, *dims) in the member's input dtype.

        Returns:
            float32 (n, k).

        Raises:
            MemberError: the member failed.
        """
        manifest, session = self._manifests[name], self._sessions[name]
        size = manifest.max_batch_size
        try:
            parts = [
                session.run([manifest.output.name], {manifest.input.name: rows[start : start + size]})[0]
                for start in range(0, len(rows), size)
            ]
        except Exception as error:  # ONNX Runtime raises a dozen types of its own
            raise MemberError(f"member {name}", got=str(error)) from error
        return np.concatenate(parts).astype(np.float32, copy=False)


def _session(path: Path, threads: int) -> Any:
    import onnxruntime

    if not path.is_file():
        raise RepositoryError(f"model file {path}", got="no such file", fix="export the member again")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # see above
        raise RepositoryError(f"model file {path}", got=str(error), fix="export the member again") from error
