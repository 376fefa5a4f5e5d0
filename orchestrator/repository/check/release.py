"""A repository compared with the ONNX Runtime inside one Triton image."""

import difflib
from collections.abc import Mapping

from orchestrator.errors import RepositoryError
from orchestrator.repository.check.models import Model
from orchestrator.repository.check.report import Findings
from orchestrator.spec import CascadeSpec
from orchestrator.spec.triton import RELEASES, Release, runtime_of


def release_from_name(name: str) -> Release:
    """The release of that name.

    Raises:
        RepositoryError: there is no such release, or nothing is known of it.
    """
    if name in RELEASES:
        return RELEASES[name]
    near = difflib.get_close_matches(name, RELEASES, n=2, cutoff=0.5)
    first, *_, last = RELEASES
    raise RepositoryError(
        "`triton`",
        got=repr(name),
        expected=f"a release from {first} to {last}",
        fix=f"did you mean {' or '.join(near)}?" if near else None,
    )


def check_release(
    release: Release, models: Mapping[str, Model], *, plans: Mapping[str, CascadeSpec], findings: Findings
) -> None:
    """Adds what a release's ONNX Runtime cannot read, or was never compared with."""
    version = release.onnxruntime
    graphs = {name: model for name, model in models.items() if model.graph is not None}
    if version is None:
        text = "no public source names the ONNX Runtime of its image: nothing was compared with it"
        findings.note("all", f"Triton {release.name}", text)
        return
    for model in graphs.values():
        _check_graph(model, release, version, findings)
    for name, spec in plans.items():
        _check_records(name, spec, models, release, findings)


def _check_graph(model: Model, release: Release, version: str, findings: Findings) -> None:
    where = f"ONNX Runtime {version} of Triton {release.name}"
    reads = runtime_of(version)
    limits = () if reads is None else (("IR version", model.ir_version, reads.ir_version),
                                       ("opset", model.opset, reads.opset))  # fmt: skip
    for word, found, most in limits:
        if found is not None and found > most:
            fix = "export it again, or serve it with a newer release"
            findings.fault(model.name, f"model file {word}", f"got {found}, {where} reads up to {most}; {fix}")
    manifest = model.manifest
    if manifest is None:
        findings.note(model.name, f"Triton {release.name}", f"no manifest says that it was proven on {where}")
        return
    fault = manifest.runtimes.get(version, {}).get("fault")
    if fault is not None:
        fix = f"serve it with another release, or prove it again: python -m export prove {model.name}"
        findings.fault(
            model.name, f"Triton {release.name}", f"wrong on {where} ({fault}); {fix} --runtimes {release.name}"
        )
    elif not _is_proven(model, version):
        why = manifest.runtimes.get(version, {}).get("not_proven")
        text = f"not proven on {where}" + (f" ({why})" if why else "")
        findings.note(
            model.name,
            f"Triton {release.name}",
            f"{text}; ask it there: python -m export prove {model.name} --runtimes {release.name}",
        )


def _is_proven(model: Model, version: str) -> bool:
    manifest = model.manifest
    if manifest is None:
        return False
    proof = manifest.runtimes.get(version, {})
    # A fault counts even if the export itself used this version, because members can be proven again later.
    if "fault" in proof:
        return False
    return manifest.versions.get("onnxruntime") == version or ("max_abs" in proof and "not_proven" not in proof)


def _check_records(
    name: str, spec: CascadeSpec, models: Mapping[str, Model], release: Release, findings: Findings
) -> None:
    """Notes that thresholds were fitted to the scores of another ONNX Runtime, which may differ."""
    recorded = {} if spec.fit is None else spec.fit.extra.get("recorded_with", {})
    known = recorded.get("onnxruntime") if isinstance(recorded, dict) else None
    if known is None or release.onnxruntime in (None, known):
        return
    unproven = [
        member.name
        for member in spec.members
        if member.name in models and not _is_proven(models[member.name], str(release.onnxruntime))
    ]
    told = f"{', '.join(unproven)} not proven there" if unproven else "its members are proven there"
    text = f"recorded with ONNX Runtime {known}, served by {release.onnxruntime}: {told}"
    findings.note(name, f"Triton {release.name}", text)
