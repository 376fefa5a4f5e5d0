"""Does a graph say in other ONNX Runtimes what its original says?"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from export.members import onnx_manifest
from export.parity import allowed_of, member_rows, original_scores, session_of
from export.runtimes import Question, answers_in_own_process, installed_version, runtime_folder
from export.tensor_rows import AnyRows, feed_of
from orchestrator.errors import ExportError
from orchestrator.repository.files import write_all
from orchestrator.spec import Manifest
from orchestrator.spec.manifest import MANIFEST, json_from_manifest
from orchestrator.spec.triton import releases_with

# Fewer than parity takes in the installed runtime: a kernel that is wrong is wrong on most rows, and each version
# costs a pass through the network.
PROVEN_ROWS = 33
# Batch size -> how many of the rows are asked in it: kernels change with the batch more than with the rows.
_ROWS_IN_BATCH = {1: 7, 7: 14, 33: PROVEN_ROWS}
# Kernels that round another way may cause this share of the mean difference that a lower precision costs.
# Between 1.19.2 and 1.32 the int8 digits members, with only ten scores a row, differ by 0.04 to 0.31 of it over
# hundreds of rows, and by up to 0.5 over 7.
_ROUNDING_SHARE = 0.5

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Proof:
    """Result of asking one version of ONNX Runtime.

    Args:
        version: of ONNX Runtime.
        max_abs: largest difference of an output from the original's; None where nothing could be compared.
        fault: why the graph does not answer there, or how far off it is; None where it is proven or untried.
        not_proven: why it could not be tried; None where it was.
    """

    version: str
    max_abs: float | None = None
    fault: str | None = None
    not_proven: str | None = None

    @property
    def holds(self) -> bool:
        """Whether the graph was tried and agrees."""
        return self.fault is None and self.not_proven is None

    def as_json(self) -> dict[str, Any]:
        """As a manifest keeps it."""
        known = {"max_abs": self.max_abs, "fault": self.fault, "not_proven": self.not_proven}
        return {name: value for name, value in known.items() if value is not None}


def prove_model(
    subject: str,
    model: Path,
    reference: Callable[[Any], npt.NDArray[np.float32]],
    rows: AnyRows,
    *,
    versions: Sequence[str],
    progress: Progress = lambda _: None,
) -> dict[str, Proof]:
    """Compares a model with its original, rows -> float32 (n, k), on the first PROVEN_ROWS in each version.

    Raises:
        ExportError: the original fails, or the model says something else in one of the versions.
    """
    if not versions:
        return {}
    expected = original_scores(reference, rows[:PROVEN_ROWS])
    proofs = proofs_of(model, rows, expected, versions=versions, allowed=allowed_of(expected), progress=progress)
    require_proven(subject, proofs)
    return proofs


def proofs_of(
    model: Path,
    rows: AnyRows,
    expected: npt.NDArray[np.float32],
    *,
    versions: Sequence[str],
    allowed: float,
    mean_allowed: float = np.inf,
    progress: Progress = lambda _: None,
) -> dict[str, Proof]:
    """Asks a model about the first PROVEN_ROWS in each version, in batches of 1, 7 and 33.

    A version that cannot be had gives a proof that says so. The original says `expected`, float32 (n, k), of the
    rows; single scores may differ by `allowed`, all of one batch size by `mean_allowed` on average.
    """
    rows = rows[:PROVEN_ROWS]
    batches = {min(size, len(rows)): min(count, len(rows)) for size, count in _ROWS_IN_BATCH.items()}
    found = {}
    for version in versions:
        progress(f"proving on ONNX Runtime {version}")
        try:
            folder = runtime_folder(version)
            question, wanted = Question(model=model, rows=rows, batches=batches), version if folder else None
            (said,) = answers_in_own_process([question], folder=folder, wanted=wanted)
        except ExportError as error:
            found[version] = Proof(version=version, not_proven=str(error))
            continue
        if isinstance(said, str):
            found[version] = Proof(version=version, fault=said)
        else:
            wanted_of = {size: expected[:count] for size, count in batches.items()}
            found[version] = _compared(version, said, wanted_of, allowed=allowed, mean_allowed=mean_allowed)
    return found


def _compared(
    version: str,
    said: Mapping[int, npt.NDArray[Any]],
    expected: Mapping[int, npt.NDArray[np.float32]],
    *,
    allowed: float,
    mean_allowed: float,
) -> Proof:
    for batch, output in said.items():
        if output.shape != expected[batch].shape:
            shapes = f"shape {list(output.shape)} for {list(expected[batch].shape)} in batches of {batch}"
            return Proof(version=version, fault=shapes)
    errors = [np.abs(np.asarray(output, np.float32) - expected[batch]) for batch, output in said.items()]
    # Python's max loses a NaN that does not come first. NaN fails the comparisons below.
    worst, mean = float(np.max([one.max() for one in errors])), float(np.max([one.mean() for one in errors]))
    fault = None
    if not worst <= allowed:
        fault = f"differs by up to {worst:.3g}"
    elif not mean <= mean_allowed:
        fault = f"differs by {mean:.3g} on average, at most {mean_allowed:.3g} is rounding"
    return Proof(version=version, max_abs=worst if np.isfinite(worst) else None, fault=fault)


def require_proven(subject: str, proofs: Mapping[str, Proof]) -> None:
    """Refuses a graph that differs in one of the runtimes; versions that were not tried pass.

    Raises:
        ExportError: naming each, and the Triton releases that carry it.
    """
    wrong = []
    for proof in proofs.values():
        if proof.fault is not None:
            releases = ", ".join(releases_with(proof.version))
            carried = f" (in Triton {releases})" if releases else ""
            wrong.append(f"ONNX Runtime {proof.version}{carried}: {proof.fault}")
    if wrong:
        others = ",".join(version for version, proof in proofs.items() if proof.holds) or "none"
        raise ExportError(
            f"{subject} on the runtimes that serve it",
            got="; ".join(wrong),
            expected="what the original says, in each of them",
            fix=f"serve with a release that runs it right and prove it on those alone (`runtimes` {others}), "
            "or export it again without that operator",
        )


def prove_against_installed(
    subject: str,
    model: Path,
    rows: AnyRows,
    *,
    versions: Sequence[str],
    agreement: Mapping[str, Any] | None = None,
    progress: Progress = lambda _: None,
) -> dict[str, Proof]:
    """Compares what a model says of the first PROVEN_ROWS in each version with what it says in the installed one.

    `agreement` is that of a member of lower precision with its fp32 original, as its manifest has it: kernels may
    round another way, so single scores may differ by "max_abs", and all by a share of "mean_abs" on average.

    Raises:
        ExportError: it says something else in one of them.
    """
    proofs = _proofs_as_here(subject, model, rows, versions, agreement or {}, progress)
    require_proven(subject, proofs)
    return proofs


def _proofs_as_here(
    subject: str,
    model: Path,
    rows: AnyRows,
    versions: Sequence[str],
    agreement: Mapping[str, Any],
    progress: Progress,
) -> dict[str, Proof]:
    if not versions:
        return {}
    session, few = session_of(model, subject), rows[:PROVEN_ROWS]
    here = session.run(None, feed_of(session, few))[0]
    least = allowed_of(here)
    return proofs_of(
        model,
        few,
        here,
        versions=versions,
        allowed=max(least, float(agreement.get("max_abs", 0.0))),
        mean_allowed=max(least, _ROUNDING_SHARE * float(agreement.get("mean_abs", 0.0))),
        progress=progress,
    )


def prove_member(
    repository: Path, name: str, *, versions: Sequence[str], progress: Progress = lambda _: None
) -> Manifest:
    """Proves a member on more versions and adds the results to its manifest.

    Raises:
        ExportError: there is no such member, or it says something else in one of them; its manifest says so then.
        RepositoryError: the repository cannot be read or written.
        SpecError: the manifest is wrong.
    """
    manifest = onnx_manifest(repository, name)
    subject, path = f"member {name}", repository / name / manifest.file
    rows = member_rows(manifest, lambda: onnx.load(path, load_external_data=False).graph, PROVEN_ROWS, seed=1)
    proofs = _proofs_as_here(
        subject, path, rows, versions, manifest.agreement, lambda text: progress(f"{name}: {text}")
    )
    proven = dataclasses.replace(
        manifest,
        runtimes={**manifest.runtimes, **json_of(proofs)},
        versions={**manifest.versions, "onnxruntime": installed_version()},
    )
    # The manifest is written before a refusal: an earlier proof must not outlive a later fault.
    write_all(repository / name, {MANIFEST: json_from_manifest(proven)})
    require_proven(subject, proofs)
    return proven


def json_of(proofs: Mapping[str, Proof]) -> dict[str, Any]:
    """Proofs by version as a manifest keeps them."""
    return {version: proof.as_json() for version, proof in proofs.items()}


def refresh_member(
    repository: Path, name: str, *, versions: Sequence[str], renamed: bool, progress: Progress = lambda _: None
) -> str:
    """Proves a member that is up to date on those versions on which it is not proven yet.

    Returns:
        what was done to it: "proven" on one more version, else "named", else "up to date".

    Raises:
        ExportError: it says something else in one of them; its manifest says so then.
        RepositoryError: the repository cannot be read or written.
    """

    def is_proven(manifest: Manifest, version: str) -> bool:
        proof = manifest.runtimes.get(version)
        return proof is not None and not {"fault", "not_proven"} & set(proof)

    rest = [version for version in versions if not is_proven(onnx_manifest(repository, name), version)]
    if rest:
        manifest = prove_member(repository, name, versions=rest, progress=progress)
        if any(is_proven(manifest, version) for version in rest):
            return "proven"
    return "named" if renamed else "up to date"
