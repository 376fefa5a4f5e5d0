"""Members of an ensemble stage and their average as one member.

The fused graph says what the decision core would make of the separate members: `mean_logit` gives the weighted
mean of z / T as logits, `mean_prob` the weighted mean of softmax(z / T) as probabilities. Asked with weight = sum
of the weights and temperature 1 it therefore takes the stage's place in a cascade: the core's running sums come
out the same but for rounding. `vote` looks at the members one by one and has no such form.

Every fused graph is compared with its members, through the decision core, before it is written.
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
from export.fusing.graph import Merger, add_average, common_of, labels_of, require_fitting
from export.labels import rename_classes
from export.members import (
    MODEL_FILE,
    ReadMember,
    check_made_by,
    is_current,
    manifest_in,
    member_from_repository,
    output_kind_option,
    write_member,
)
from export.packing import PackedModel, packed
from export.parity import BATCHES, MIN_ROWS, answers_of, session_of
from export.precision.overflow import processor_flags_of
from export.rows import varied_rows
from export.runtimes.proof import prove_against_installed, refresh_member
from orchestrator.decision.combine import Combiner
from orchestrator.errors import ExportError
from orchestrator.graphs.editing import full_check, given_inputs, opset_of
from orchestrator.spec import CascadeSpec, InputSpec, Manifest, Member, Stage, TensorSpec

COMMAND = "fuse"
FORMAT = 1
COMBINES = ("mean_logit", "mean_prob")
# Two orders of one sum differ by no more than that.
MAX_ABS_ERROR = 1e-5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fusion:
    """What is to be fused.

    Args:
        name: of the fused member.
        members: how each is asked, in plan order: name, weight and temperature count.
        combine: one of COMBINES.
    """

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
    """Makes a fused member, unless it is there already.

    Args:
        repository: that holds the members.
        fusion: what to fuse.
        output: repository to write into; None for the same.
        force: make it again, also over another exported member.
        progress: told what is being done.

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
    options = options_of(fusion, manifests)
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
        parity = fused_parity(repository, fusion, manifests, stored.path)
        rows = varied_rows(manifests[0].input, MIN_ROWS, seed=2)
        proofs = prove_against_installed(
            f"fused {fusion.name}",
            stored.path,
            rows,
            versions=versions,
            progress=lambda text: progress(f"{fusion.name}: {text}"),
        )
        manifest = dataclasses.replace(
            _manifest(fusion, manifests, model, stored=stored, parity=parity, options=options),
            runtimes={version: proof.as_json() for version, proof in proofs.items()},
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


def fused_parity(repository: Path, fusion: Fusion, manifests: Sequence[Manifest], fused: Path) -> dict[str, Any]:
    """Compares a fused model with its separate members, both through the decision core.

    Raises:
        ExportError: they differ by more than rounding.
    """
    rows = varied_rows(manifests[0].input, MIN_ROWS, seed=2)
    outputs = [
        answers_of(session_of(path, f"model file {path}"), rows, batch=max(BATCHES))
        for path in (repository / manifest.name / manifest.file for manifest in manifests)
    ]
    asked = [
        dataclasses.replace(member, output_kind=manifest.output_kind)
        for member, manifest in zip(fusion.members, manifests, strict=True)
    ]
    expected, labels = _judged(fusion.combine, manifests[0].input, asked, outputs)
    name, kind = fusion.output
    alone = [Member(name=fusion.name, output=name, output_kind=kind)]
    session, worst, same = session_of(fused, f"model file {fused}"), 0.0, 1.0
    for batch in BATCHES:
        got, label = _judged(fusion.combine, manifests[0].input, alone, [answers_of(session, rows, batch=batch)])
        worst = max(worst, float(np.abs(got - expected).max()))
        same = min(same, float((label == labels).mean()))
    if not worst <= MAX_ABS_ERROR:
        raise ExportError(
            f"fused {fusion.name}",
            got=f"probabilities that differ by {worst:g} from the members'",
            expected=f"at most {MAX_ABS_ERROR:g}",
            fix="a member computes in low precision or depends on the batch: fuse others",
        )
    return {
        "against": "its members asked apart",
        "rows": len(rows),
        "batches": list(BATCHES),
        "max_abs": worst,
        "same_top1": same,
    }


def options_of(fusion: Fusion, manifests: Sequence[Manifest]) -> dict[str, Any]:
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
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ExportError("fuse", got=f"{', '.join(twice)} more than once", expected="each member once")
    if fusion.combine not in COMBINES:
        why = "; vote asks which class each member puts first" if fusion.combine == "vote" else ""
        raise ExportError(
            "`combine`", got=fusion.combine, expected=f"{' or '.join(COMBINES)}, which are averages{why}"
        )
    if fusion.name in names:
        raise ExportError("name of the fused member", got=fusion.name, expected="another than its members'")


def _judged(
    combine: str, source: TensorSpec, members: Sequence[Member], outputs: Sequence[npt.NDArray[Any]]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """What the decision core makes of one stage's outputs."""
    spec = CascadeSpec(
        name="one_stage",
        input=InputSpec(name=source.name, dtype=source.dtype, dims=tuple(abs(size) for size in source.dims)),
        classes=outputs[0].shape[1],
        stages=(Stage(members=tuple(members)),),
        combine=combine,
    )
    combiner = Combiner(spec)
    tally = combiner.empty(len(outputs[0]))
    combiner.add_stage(tally, 0, outputs)
    return combiner.distribution(tally)


def _manifest(
    fusion: Fusion,
    manifests: Sequence[Manifest],
    model: onnx.ModelProto,
    *,
    stored: PackedModel,
    parity: dict[str, Any],
    options: dict[str, Any],
) -> Manifest:
    name, kind = fusion.output
    weighed = ", ".join(f"{m.name} x {m.weight:g} at T {m.temperature:g}" for m in fusion.members)
    return Manifest(
        name=fusion.name,
        file=MODEL_FILE,
        sha256=stored.sha256,
        data_files={f"1/{file}": digest for file, digest in stored.data_files.items()},
        source=f"python -m export fuse, {fusion.combine} of {weighed}",
        opset=opset_of(model),
        input=manifests[0].input,
        output=TensorSpec(name=name, dtype="FP32", dims=manifests[0].output.dims),
        output_kind=kind,
        # Shared image processing is in the graph once, and counted once.
        preprocess_macs=preprocess_macs_per_row(model),
        parity=parity,
        options=options,
        versions={"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__},
        processor_flags=processor_flags_of(model),
        **common_of(manifests),
    )
