"""Every multi-member stage of a plan as one fused member, and the plan that uses them.

The new plan answers as the old one: same labels, exits and costs, probabilities within rounding. What cannot be
kept is refused: `vote` and the score `agreement` look at members one by one, and a stage that may answer without
one of its members (`on_failure: answer`) would, fused, fail as a whole.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from export.fusing.members import Fusion, fuse
from export.members import manifest_in
from orchestrator.errors import ExportError
from orchestrator.spec import CascadeSpec, Manifest, Member, Stage
from orchestrator.spec.class_names import first_unlike
from orchestrator.spec.planned_models import data_files_of


def fuse_plan(
    spec: CascadeSpec,
    repository: Path,
    *,
    output: Path | None = None,
    name: str | None = None,
    allow_whole_failure: bool = False,
    force: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[CascadeSpec, dict[str, str]]:
    """Fuses the stages of a plan.

    Args:
        spec: the plan.
        repository: that holds its members.
        output: repository to write the fused members into; None for the same.
        name: of the new plan; None for the old one's with "_fused" behind it.
        allow_whole_failure: take stages with `on_failure: answer` too.
        force: fuse again, also over other exported members.
        progress: told what is being done.

    Returns:
        the new plan, and fused member -> "fused" or "up to date".

    Raises:
        ExportError: the plan cannot be kept, its members do not fit it, or a name is taken.
        RepositoryError: a repository cannot be read or written.
        SpecError: a manifest is wrong.
    """
    new = name or f"{spec.name}_fused"
    if new == spec.name:
        raise ExportError("name of the new plan", got=new, expected="another than the old plan's")
    _require_keepable(spec, allow_whole_failure=allow_whole_failure)
    _require_planned(spec, repository)
    stages, done, made_of = [], {}, {}
    for index, stage in enumerate(spec.stages):
        if len(stage.members) == 1:
            stages.append(stage)
            continue
        fusion = Fusion(
            name=f"{new}_stage_{index}",
            members=stage.members,
            # `last` takes the mean probabilities of the newest stage.
            combine="mean_prob" if spec.combine == "last" else spec.combine,
        )
        manifest, what = fuse(repository, fusion, output=output, force=force, progress=progress)
        done[manifest.name] = what
        made_of[manifest.name] = {member.name: member.sha256 for member in stage.members}
        stages.append(_fused_stage(stage, manifest, spec.input.name))
    fit = spec.fit
    if fit is not None:
        fit = dataclasses.replace(fit, extra={**fit.extra, "fused": {"plan": spec.name, "members": made_of}})
    return dataclasses.replace(spec, name=new, stages=tuple(stages), fit=fit), done


def _fused_stage(stage: Stage, manifest: Manifest, input_name: str) -> Stage:
    member = Member(
        name=manifest.name,
        output=manifest.output.name,
        input=None if manifest.input.name == input_name else manifest.input.name,
        output_kind=manifest.output_kind,
        weight=sum(member.weight for member in stage.members),
        # In the plan's unit; rows are charged the same sum as before.
        cost=stage.cost,
        max_batch_size=manifest.max_batch_size,
        sha256=manifest.sha256,
        data_files=data_files_of(manifest.data_files),
    )
    return dataclasses.replace(stage, members=(member,))


def _require_keepable(spec: CascadeSpec, *, allow_whole_failure: bool) -> None:
    several = [stage for stage in spec.stages if len(stage.members) > 1]
    what = f"plan {spec.name}"
    if not several:
        raise ExportError(what, got="one member in every stage", expected="a stage of several, to fuse")
    if spec.combine == "vote":
        raise ExportError(what, got="combine vote", expected="mean_logit, mean_prob or last",
                          fix="plan with one of these: a vote needs the members one by one")  # fmt: skip
    if spec.score == "agreement":
        raise ExportError(what, got="score agreement", expected="max_prob, top2_gap or neg_entropy",
                          fix="plan with one of these: agreement needs the members one by one")  # fmt: skip
    lenient = [index for index, stage in enumerate(spec.stages) if stage in several and _lenient(stage)]
    if lenient and not allow_whole_failure:
        raise ExportError(
            what,
            got=f"on_failure answer in stage {', '.join(map(str, lenient))}",
            expected="error: fused, such a stage gives no answer when one of its members would fail",
            fix="accept that with `allow_whole_failure`",
        )


def _lenient(stage: Stage) -> bool:
    return stage.on_failure == "answer"


def _require_planned(spec: CascadeSpec, repository: Path) -> None:
    """Refuses members that are not those the plan was made with, naming all of them."""
    faults = []
    for stage in spec.stages:
        for member in stage.members if len(stage.members) > 1 else ():
            manifest = manifest_in(repository, member.name)
            faults += [f"{member.name} {text}" for text in _differences(spec, member, manifest)]
    if faults:
        raise ExportError(
            f"members of plan {spec.name}",
            got="; ".join(faults),
            expected="what it was made with",
            fix="plan again",
        )


def _differences(spec: CascadeSpec, member: Member, manifest: Manifest) -> list[str]:
    pairs: dict[str, tuple[Any, Any]] = {
        "output": (manifest.output.name, member.output),
        "output_kind": (manifest.output_kind, member.output_kind),
        "input": (manifest.input.name, member.input or spec.input.name),
        "input dtype": (manifest.input.dtype, spec.input.dtype),
        "input dims": (list(manifest.input.dims), list(spec.input.dims)),
        "classes": (list(manifest.output.dims), [spec.classes]),
    }
    if member.sha256 is not None:
        pairs["hash"] = (manifest.sha256[:12], member.sha256[:12])
    found = [f"{what} {found} for {planned}" for what, (found, planned) in pairs.items() if found != planned]
    if manifest.labels is None or spec.labels is None or first_unlike(manifest.labels, spec.labels) is None:
        return found
    return [*found, "labels differ"]
