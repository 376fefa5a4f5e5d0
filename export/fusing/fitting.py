"""Do members fit together in one graph, and what do they have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from export.reading import ReadMember
from orchestrator.errors import ExportError
from orchestrator.spec import Manifest, Preprocess
from orchestrator.spec.class_names import first_unlike
from orchestrator.spec.manifest import PRECISIONS


def require_fitting(name: str, parts: Sequence[ReadMember]) -> None:
    """Refuses members that do not fit each other, naming every disagreement at once.

    Raises:
        ExportError: with all of them.
    """
    faults = []
    for what, value_of in _MUST_AGREE.items():
        found = {part.manifest.name: value_of(part) for part in parts}
        known = {member: value for member, value in found.items() if value is not None}
        if len({repr(value) for value in known.values()}) > 1:
            faults.append(f"{what} ({', '.join(f'{member} {value}' for member, value in known.items())})")
    faults += _label_faults(parts)
    for part in parts:
        tensor = part.manifest.output
        if tensor.dtype not in ("FP32", "FP16", "FP64") or len(tensor.dims) != 1:
            faults.append(f"output of {part.manifest.name} is {tensor.dtype} {list(tensor.dims)}")
    if faults:
        raise ExportError(f"members of {name} differ", got="; ".join(faults), expected="the same in all of them")


def _values_of_pictures(preprocess: Preprocess | None) -> str | None:
    """What the numbers of a row mean, where it comes from a picture; how it is cropped does not count."""
    if preprocess is None:
        return None
    p = preprocess
    return f"{p.mode} {p.layout} {p.value_min:g} to {p.value_max:g}{' inverted' if p.invert else ''}"


def _opset(part: ReadMember) -> int:
    return int(next(one.version for one in part.model.opset_import if one.domain in ("", "ai.onnx")))


def _label_faults(parts: Sequence[ReadMember]) -> list[str]:
    """Where class names differ, in text or order; members that carry none agree with everything."""
    known = [part.manifest for part in parts if part.manifest.labels is not None]
    faults = []
    for other in known[1:]:
        one, two = known[0].labels or (), other.labels or ()
        index = first_unlike(one, two)
        if index is not None and index < min(len(one), len(two)):
            faults.append(f"label of class {index} ({known[0].name} {one[index]!r}, {other.name} {two[index]!r})")
    return faults


# What must agree -> how to read it; None stands for not known, which agrees with everything.
_MUST_AGREE: dict[str, Callable[[ReadMember], object]] = {
    "input name": lambda part: part.manifest.input.name,
    "input dtype": lambda part: part.manifest.input.dtype,
    "input dims": lambda part: list(part.manifest.input.dims),
    "classes": lambda part: list(part.manifest.output.dims),
    "values of pictures": lambda part: _values_of_pictures(part.manifest.preprocess),
    "opset": _opset,
}


def common_of(manifests: Sequence[Manifest]) -> dict[str, Any]:
    """The fields of a fused member's manifest that follow from its members'.

    Parameters and MACs add up. The precision is the lowest of theirs, since the answers are no better than that.
    """
    first = manifests[0]
    return {
        "precision": max((m.precision for m in manifests), key=PRECISIONS.index),
        "parameters": sum(m.parameters for m in manifests),
        "macs": sum(m.macs for m in manifests),
        "macs_counter": " and ".join(dict.fromkeys(m.macs_counter for m in manifests)),
        "labels": labels_of(manifests),
        "max_batch_size": min(m.max_batch_size for m in manifests),
        "random_weights": any(m.random_weights for m in manifests),
        "preprocess": next((m.preprocess for m in manifests if m.preprocess is not None), None),
        "resolution_px": first.resolution_px if _all_equal(m.resolution_px for m in manifests) else None,
        "in_graph": {m.name: m.in_graph for m in manifests if m.in_graph},
    }


def labels_of(manifests: Sequence[Manifest]) -> tuple[str, ...] | None:
    """What members that agree call their classes, None where none says."""
    return next((m.labels for m in manifests if m.labels is not None), None)


def _all_equal(values: Iterable[object]) -> bool:
    return len(set(values)) == 1
