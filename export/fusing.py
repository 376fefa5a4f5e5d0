"""Members of a stage and their average as one member, for one stage or for all of a plan.

The fused graph says what the decision core would make of the separate members: `mean_logit` gives the weighted
mean of z / T as logits, `mean_prob` the weighted mean of softmax(z / T) as probabilities. Asked with weight = sum
of the weights and temperature 1 it therefore takes the stage's place in a cascade: the core's running sums come
out the same but for rounding. `vote` looks at the members one by one and has no such form.

Every fused graph is compared with its members, through the decision core, before it is written.

A plan whose stages are fused answers as the old one: same labels, exits and costs, probabilities within rounding.
What cannot be kept is refused: `vote` and the score `agreement` look at members one by one, and a stage that may
answer without one of its members (`on_failure: answer`) would, fused, fail as a whole.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper

from export.cost.counting import preprocess_macs_per_row
from export.members import (
    MODEL_FILE,
    ReadMember,
    check_made_by,
    is_current,
    manifest_in,
    member_from_repository,
    output_kind_option,
    packed,
    write_member,
)
from export.merging import Merger, add_average, common_of, labels_of, require_fitting
from export.output import rename_classes
from export.parity import BATCHES, MIN_ROWS, answers_of, session_of, varied_rows
from export.precision.overflow import processor_flags_of
from export.proof import json_of, prove_against_installed, refresh_member
from orchestrator.decision.combine import Combiner
from orchestrator.errors import ExportError, repeated
from orchestrator.graphs.editing import full_check, given_inputs, opset_of
from orchestrator.spec import SCORES, CascadeSpec, InputSpec, Manifest, Member, Stage, TensorSpec
from orchestrator.spec.answer import first_unlike
from orchestrator.spec.planned_models import data_files_of

COMMAND = "fuse"
FORMAT = 1
COMBINES = ("mean_logit", "mean_prob")
# Two orders of one sum differ by no more than that.
MAX_ABS_ERROR = 1e-5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fusion:
    """What is to be fused: members in plan order, whose name, weight and temperature count, by one of COMBINES."""

    name: str
    members: tuple[Member, ...]
    combine: str

    @property
    def output(self) -> tuple[str, str]:
        """Name and output_kind of what comes out."""
        return ("logits", "logits") if self.combine == "mean_logit" else ("probabilities", "probabilities")


def fuse(
    repository: Path,
    fusion: Fusion,
    *,
    output: Path | None = None,
    force: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[Manifest, str]:
    """Makes a fused member in the repository of its members, or in `output`, unless it is there already.

    `force` makes it again, also over another exported member.

    Returns:
        its manifest, and "fused", "up to date", "proven" where it was up to date but not yet proven on all that
        its members are, or "named" where only the names of its classes are others.

    Raises:
        ExportError: the members do not fit each other, cannot be fused, or the name is taken.
        RepositoryError: a repository cannot be read or written.
        SpecError: a manifest, weight or temperature is wrong.
    """
    target = output or repository
    _require_sense(fusion)
    manifests = [manifest_in(repository, member.name) for member in fusion.members]
    check_made_by(COMMAND, target, fusion.name, force=force)
    options = _options_of(fusion, manifests)
    versions = tuple(dict.fromkeys(version for one in manifests for version in one.runtimes))
    if not force and is_current(target / fusion.name, options):
        renamed = rename_classes(target, fusion.name, labels_of(manifests))
        done = refresh_member(target, fusion.name, versions=versions, renamed=renamed, progress=progress)
        return manifest_in(target, fusion.name), done
    progress(f"{fusion.name}: reading {', '.join(member.name for member in fusion.members)}")
    parts = [member_from_repository(repository, member.name) for member in fusion.members]
    require_fitting(fusion.name, parts)
    progress(f"{fusion.name}: fusing")
    model = fused_model(fusion, parts)
    with packed(model, target) as stored:
        full_check(stored.path, f"fused {fusion.name}")
        progress(f"{fusion.name}: comparing with its members")
        rows = varied_rows(manifests[0].input, MIN_ROWS, seed=2)
        parity = _parity(repository, fusion, manifests, stored.path, rows)
        proofs = prove_against_installed(
            f"fused {fusion.name}",
            stored.path,
            rows,
            versions=versions,
            progress=lambda text: progress(f"{fusion.name}: {text}"),
        )
        name, kind = fusion.output
        weighed = ", ".join(f"{m.name} x {m.weight:g} at T {m.temperature:g}" for m in fusion.members)
        manifest = Manifest(
            name=fusion.name,
            file=MODEL_FILE,
            sha256=stored.sha256,
            data_files={f"1/{file}": digest for file, digest in stored.data_files.items()},
            source=f"python -m export fuse, {fusion.combine} of {weighed}",
            opset=opset_of(model),
            inputs=(manifests[0].input,),
            output=TensorSpec(name=name, dtype="FP32", dims=manifests[0].output.dims),
            output_kind=kind,
            # Shared image processing is in the graph once, and counted once.
            preprocess_macs=preprocess_macs_per_row(model),
            parity=parity,
            options=options,
            runtimes=json_of(proofs),
            versions={"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__},
            processor_flags=processor_flags_of(model),
            **common_of(manifests),
        )
        write_member(target, stored, manifest)
    return manifest, "fused"


def fused_model(fusion: Fusion, parts: Sequence[ReadMember]) -> onnx.ModelProto:
    """The members, which fit each other, and their average as one graph."""
    merger = Merger(given_inputs(parts[0].model.graph)[0])
    scores = []
    for member, part in zip(fusion.members, parts, strict=True):
        asked = dataclasses.replace(member, output_kind=part.manifest.output_kind)
        tensor = merger.add(member.name, part.model, output=part.manifest.output.name)
        scores.append((asked, tensor, part.manifest.output.dtype))
    name, _ = fusion.output
    nodes, constants = add_average(scores, combine=fusion.combine, output=name)
    merger.nodes.extend(nodes)
    merger.constants.extend(constants)
    batch = merger.source.type.tensor_type.shape.dim[0].dim_param or "batch"
    classes = parts[0].manifest.output.dims[0]
    made = helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, classes])
    return merger.model(fusion.name, [made])


def _parity(
    repository: Path, fusion: Fusion, manifests: Sequence[Manifest], fused: Path, rows: npt.NDArray[Any]
) -> dict[str, Any]:
    """Compares a fused model with its separate members, both through the decision core."""

    def judged(
        members: Sequence[Member], outputs: Sequence[npt.NDArray[Any]]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Probabilities and labels that the core makes of one stage's outputs."""
        source = manifests[0].input
        spec = CascadeSpec(
            name="one_stage",
            inputs=(
                InputSpec(name=source.name, dtype=source.dtype, dims=tuple(abs(size) for size in source.dims)),
            ),
            classes=outputs[0].shape[1],
            stages=(Stage(members=tuple(members)),),
            combine=fusion.combine,
        )
        combiner = Combiner(spec)
        tally = combiner.empty(len(rows))
        combiner.add_stage(tally, 0, outputs)
        return combiner.distribution(tally)

    paths = [repository / manifest.name / manifest.file for manifest in manifests]
    outputs = [answers_of(session_of(path, f"model file {path}"), rows, batch=max(BATCHES)) for path in paths]
    kinds = [manifest.output_kind for manifest in manifests]
    asked = [dataclasses.replace(one, output_kind=kind) for one, kind in zip(fusion.members, kinds, strict=True)]
    expected, labels = judged(asked, outputs)
    name, kind = fusion.output
    alone = [Member(name=fusion.name, output=name, output_kind=kind)]
    session, worst, same = session_of(fused, f"model file {fused}"), 0.0, 1.0
    for batch in BATCHES:
        got, label = judged(alone, [answers_of(session, rows, batch=batch)])
        worst = max(worst, float(np.abs(got - expected).max()))
        same = min(same, float((label == labels).mean()))
    if not worst <= MAX_ABS_ERROR:
        raise ExportError(
            f"fused {fusion.name}",
            got=f"probabilities that differ by {worst:g} from the members'",
            expected=f"at most {MAX_ABS_ERROR:g}",
            fix="a member computes in low precision or depends on the batch: fuse others",
        )
    figures = {"rows": len(rows), "batches": list(BATCHES), "max_abs": worst, "same_top1": same}
    return {"against": "its members asked apart", **figures}


def _options_of(fusion: Fusion, manifests: Sequence[Manifest]) -> dict[str, Any]:
    """What decides the fused file."""
    return {
        "command": COMMAND,
        "format": FORMAT,
        "combine": fusion.combine,
        "members": [
            {
                "name": member.name,
                "sha256": manifest.sha256,
                "precision": manifest.precision,
                "weight": member.weight,
                "temperature": member.temperature,
                **output_kind_option(manifest),
            }
            for member, manifest in zip(fusion.members, manifests, strict=True)
        ],
    }


def _require_sense(fusion: Fusion) -> None:
    names = [member.name for member in fusion.members]
    if len(names) < 2:
        raise ExportError("fuse", got=", ".join(names) or "no member", expected="at least two members")
    twice = repeated(names)
    if twice:
        raise ExportError("fuse", got=f"{', '.join(twice)} more than once", expected="each member once")
    if fusion.combine not in COMBINES:
        why = "; vote asks which class each member puts first" if fusion.combine == "vote" else ""
        expected = f"{' or '.join(COMBINES)}, which are averages{why}"
        raise ExportError("`combine`", got=fusion.combine, expected=expected)
    if fusion.name in names:
        raise ExportError("name of the fused member", got=fusion.name, expected="another than its members'")


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
    """Fuses the stages of a plan into the repository of its members, or into `output`.

    The new plan has the old one's name with "_fused" behind it where none is given. `allow_whole_failure` takes
    stages with `on_failure: answer` too; `force` fuses again, also over other exported members.

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
        member = Member(
            name=manifest.name,
            output=manifest.output.name,
            inputs={} if manifest.input.name == spec.input.name else {manifest.input.name: spec.input.name},
            output_kind=manifest.output_kind,
            weight=sum(member.weight for member in stage.members),
            # In the plan's unit; rows are charged the same sum as before.
            cost=stage.cost,
            max_batch_size=manifest.max_batch_size,
            sha256=manifest.sha256,
            data_files=data_files_of(manifest.data_files),
        )
        stages.append(dataclasses.replace(stage, members=(member,)))
    fit = spec.fit
    if fit is not None:
        fit = dataclasses.replace(fit, extra={**fit.extra, "fused": {"plan": spec.name, "members": made_of}})
    return dataclasses.replace(spec, name=new, stages=tuple(stages), fit=fit), done


def _require_keepable(spec: CascadeSpec, *, allow_whole_failure: bool) -> None:
    several = [index for index, stage in enumerate(spec.stages) if len(stage.members) > 1]
    what = f"plan {spec.name}"
    if not several:
        raise ExportError(what, got="one member in every stage", expected="a stage of several, to fuse")
    for key, value, others in (
        ("combine", "vote", "mean_logit, mean_prob or last"),
        ("score", "agreement", ", ".join(score for score in SCORES if score != "agreement")),
    ):
        if getattr(spec, key) == value:
            fix = f"plan with one of these: {'a vote' if value == 'vote' else value} needs the members one by one"
            raise ExportError(what, got=f"{key} {value}", expected=others, fix=fix)
    lenient = [index for index in several if spec.stages[index].on_failure == "answer"]
    if lenient and not allow_whole_failure:
        raise ExportError(
            what,
            got=f"on_failure answer in stage {', '.join(map(str, lenient))}",
            expected="error: fused, such a stage gives no answer when one of its members would fail",
            fix="accept that with `allow_whole_failure`",
        )


def _require_planned(spec: CascadeSpec, repository: Path) -> None:
    """Refuses members that are not those the plan was made with, naming all of them."""
    members = [one for stage in spec.stages if len(stage.members) > 1 for one in stage.members]
    faults = [
        f"{member.name} {text}"
        for member in members
        for text in _differences(spec, member, manifest_in(repository, member.name))
    ]
    if faults:
        what, got = f"members of plan {spec.name}", "; ".join(faults)
        raise ExportError(what, got=got, expected="what it was made with", fix="plan again")


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
