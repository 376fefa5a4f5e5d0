"""Members of a repository, proven on other runtimes: what the installed one says is the measure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from export.parity import allowed_of, session_of
from export.reading import MANIFEST, onnx_manifest
from export.rows import varied_rows
from export.runtimes.proof import PROVEN_ROWS, Proof, proofs_of, require_proven
from export.runtimes.wheels import installed_version
from orchestrator.repository.files import write_all
from orchestrator.spec import Manifest
from orchestrator.spec.manifest import json_from_manifest


def proven_as_here(
    subject: str,
    model: Path,
    rows: npt.NDArray[Any],
    *,
    versions: Sequence[str],
    least_allowed: float = 0.0,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Proof]:
    """Compares what a model says in each version with what it says in the installed one.

    Args:
        subject: the model, for messages.
        model: path of the ONNX file.
        rows: (n, *dims); the first 16 are asked about.
        versions: of ONNX Runtime.
        least_allowed: a difference that is allowed whatever the size of the scores: what a lower precision costs
            anyway, since kernels may round the other way.
        progress: told what is being done.

    Raises:
        ExportError: it says something else in one of them.
    """
    if not versions:
        return {}
    session, few = session_of(model, subject), rows[:PROVEN_ROWS]
    here = session.run(None, {session.get_inputs()[0].name: few})[0]
    allowed = max(allowed_of(here), least_allowed)
    proofs = proofs_of(model, few, here, versions=versions, allowed=allowed, progress=progress)
    require_proven(subject, proofs)
    return proofs


def prove_member(
    repository: Path, name: str, *, versions: Sequence[str], progress: Callable[[str], None] = lambda _: None
) -> Manifest:
    """Proves a member on more versions and notes them in its manifest, beside those of before.

    Args:
        repository: that holds it.
        name: of an ONNX member.
        versions: of ONNX Runtime.
        progress: told what is being done.

    Raises:
        ExportError: there is no such member, or it says something else in one of them; the manifest stays then.
        RepositoryError: the repository cannot be read or written.
        SpecError: the manifest is wrong.
    """
    manifest = onnx_manifest(repository, name)
    proofs = proven_as_here(
        f"member {name}",
        repository / name / manifest.file,
        varied_rows(manifest.input, PROVEN_ROWS, seed=1),
        versions=versions,
        least_allowed=float(manifest.agreement.get("max_abs", 0.0)),
        progress=progress,
    )
    runtimes = {**manifest.runtimes, **{version: proof.as_json() for version, proof in proofs.items()}}
    proven = dataclasses.replace(
        manifest, runtimes=runtimes, versions={**manifest.versions, "onnxruntime": installed_version()}
    )
    write_all(repository / name, {MANIFEST: json_from_manifest(proven)})
    return proven
