"""Members of a repository, proven on other runtimes: what the installed one says is the measure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
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

# Of the mean difference that a lower precision costs, so much may come from kernels that round another way.
# Between 1.19.2 and 1.32 the int8 digits members, whose few scores average least, differ by 0.04 to 0.31 of it
# over hundreds of rows, and by up to 0.5 over 7.
_ROUNDING_SHARE = 0.5


def proven_as_here(
    subject: str,
    model: Path,
    rows: npt.NDArray[Any],
    *,
    versions: Sequence[str],
    agreement: Mapping[str, Any] | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Proof]:
    """Compares what a model says in each version with what it says in the installed one.

    Args:
        subject: the model, for messages.
        model: path of the ONNX file.
        rows: (n, *dims); the first PROVEN_ROWS are asked about.
        versions: of ONNX Runtime.
        agreement: of a member of lower precision with its fp32 original, as its manifest has it: kernels may round
            another way, so single scores may differ by "max_abs", and all by a share of "mean_abs" on average.
        progress: told what is being done.

    Raises:
        ExportError: it says something else in one of them.
    """
    proofs = _proofs_as_here(subject, model, rows, versions=versions, agreement=agreement, progress=progress)
    require_proven(subject, proofs)
    return proofs


def _proofs_as_here(
    subject: str,
    model: Path,
    rows: npt.NDArray[Any],
    *,
    versions: Sequence[str],
    agreement: Mapping[str, Any] | None,
    progress: Callable[[str], None],
) -> dict[str, Proof]:
    if not versions:
        return {}
    session, few = session_of(model, subject), rows[:PROVEN_ROWS]
    here = session.run(None, {session.get_inputs()[0].name: few})[0]
    least, costs = allowed_of(here), agreement or {}
    return proofs_of(
        model,
        few,
        here,
        versions=versions,
        allowed=max(least, float(costs.get("max_abs", 0.0))),
        mean_allowed=max(least, _ROUNDING_SHARE * float(costs.get("mean_abs", 0.0))),
        progress=progress,
    )


def prove_member(
    repository: Path, name: str, *, versions: Sequence[str], progress: Callable[[str], None] = lambda _: None
) -> Manifest:
    """Proves a member on more versions and notes what came of them in its manifest, beside those of before.

    Args:
        repository: that holds it.
        name: of an ONNX member.
        versions: of ONNX Runtime.
        progress: told what is being done.

    Raises:
        ExportError: there is no such member, or it says something else in one of them; its manifest says so then.
        RepositoryError: the repository cannot be read or written.
        SpecError: the manifest is wrong.
    """
    manifest = onnx_manifest(repository, name)
    subject = f"member {name}"
    proofs = _proofs_as_here(
        subject,
        repository / name / manifest.file,
        varied_rows(manifest.input, PROVEN_ROWS, seed=1),
        versions=versions,
        agreement=manifest.agreement,
        progress=progress,
    )
    runtimes = {**manifest.runtimes, **{version: proof.as_json() for version, proof in proofs.items()}}
    proven = dataclasses.replace(
        manifest, runtimes=runtimes, versions={**manifest.versions, "onnxruntime": installed_version()}
    )
    # Written before it is refused: an earlier claim must not outlive a later fault.
    write_all(repository / name, {MANIFEST: json_from_manifest(proven)})
    require_proven(subject, proofs)
    return proven


def prove_rest(
    repository: Path, name: str, *, versions: Sequence[str], progress: Callable[[str], None] = lambda _: None
) -> bool:
    """Proves a member that is up to date on those versions only on which it is not proven yet.

    Args:
        repository: that holds it.
        name: of an ONNX member.
        versions: of ONNX Runtime.
        progress: told what is being done.

    Returns:
        whether it is proven on one more.

    Raises:
        ExportError: it says something else in one of them; its manifest says so then.
        RepositoryError: the repository cannot be read or written.
    """
    rest = [version for version in versions if not _is_proven(onnx_manifest(repository, name), version)]
    if not rest:
        return False
    manifest = prove_member(repository, name, versions=rest, progress=progress)
    return any(_is_proven(manifest, version) for version in rest)


def _is_proven(manifest: Manifest, version: str) -> bool:
    proof = manifest.runtimes.get(version)
    return proof is not None and not {"fault", "not_proven"} & set(proof)
