"""What a one-file cascade says of itself: its plan and its members, kept in the model's own metadata.

`python -m export onefile` writes such models; what is needed to tell later whether one is out of date lies here.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx

from orchestrator.errors import SpecError
from orchestrator.spec import CascadeSpec, Limits, Stage, cascade_from_json, json_from_cascade

ONEFILE_KEY = "onefile"
PRODUCER = "committee"
_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class OneFile:
    """One ONNX graph that holds a cascade, or its leading stages.

    Args:
        spec: the cascade, without what changes no answer; see `answering`.
        stages: how many leading stages it covers and gives the raw outputs of; None for a whole cascade.
        sha256: member name -> hash of the model file that went in.
    """

    spec: CascadeSpec
    stages: int | None
    sha256: Mapping[str, str]

    @property
    def covered(self) -> tuple[Stage, ...]:
        """The stages inside."""
        return self.spec.stages[: self.stages]

    def outdated(self, plan: CascadeSpec | None, hashes: Mapping[str, str | None]) -> dict[str, str]:
        """Changes since the model was written, by field.

        Args:
            plan: the cascade as it lies in the repository now; None where it is not there, which is no fault.
            hashes: member name -> hash of its model file now; a member that is not there is left out or None.
        """
        found = {}
        if plan is not None and answering(plan) != self.spec:
            found["plan"] = (
                f"differs from {plan.name}'s cascade.json; write it again with `python -m export onefile`"
            )
        for name, digest in self.sha256.items():
            now = hashes.get(name)
            if now is not None and now != digest:
                text = f"model file has hash {now[:12]}..., the one inside {digest[:12]}..."
                found[f"member {name}"] = f"{text}; write it again with `python -m export onefile`"
        return found


def onefile_name(spec: CascadeSpec, stages: int | None = None) -> str:
    """The usual name of a cascade's one-file model, or of the one of its leading stages."""
    return f"{spec.name}_onefile" if stages is None else f"{spec.name}_lead"


def answering(spec: CascadeSpec) -> CascadeSpec:
    """A plan without the parts that change no answer: its fit, the members' places, and limits of the runtime."""
    stages = tuple(
        dataclasses.replace(
            stage,
            members=tuple(dataclasses.replace(one, version=None, data_files={}) for one in stage.members),
        )
        for stage in spec.stages
    )
    limits = Limits(max_batch_size=spec.limits.max_batch_size)
    return dataclasses.replace(spec, stages=stages, fit=None, fused_prefix=None, limits=limits)


def metadata_from_onefile(onefile: OneFile) -> dict[str, str]:
    """What to put into the model's metadata."""
    value = {
        "format": _FORMAT,
        "stages": onefile.stages,
        "sha256": dict(onefile.sha256),
        "cascade": json.loads(json_from_cascade(onefile.spec)),
    }
    return {ONEFILE_KEY: json.dumps(value, ensure_ascii=False, allow_nan=False)}


def onefile_from_model(model: onnx.ModelProto, *, subject: str) -> OneFile | None:
    """What a model says of itself, or None where it is no one-file cascade of ours.

    Raises:
        SpecError: it is one, and what it says cannot be read.
    """
    if model.producer_name != PRODUCER:
        return None
    return onefile_from_metadata({entry.key: entry.value for entry in model.metadata_props}, subject=subject)


def onefile_from_metadata(metadata: Mapping[str, Any], *, subject: str) -> OneFile | None:
    """What a model's metadata says, or None where it is no one-file cascade of ours."""
    if ONEFILE_KEY not in metadata:
        return None
    fix = "write it again with `python -m export onefile`"
    try:
        value = json.loads(str(metadata[ONEFILE_KEY]))
        format_, stages, hashes = value["format"], value["stages"], value["sha256"]
        spec = cascade_from_json(json.dumps(value["cascade"]), subject)
    except (ValueError, KeyError, TypeError) as error:
        message = f"got {type(error).__name__}, expected what was written with it"
        raise SpecError(subject, {ONEFILE_KEY: message}, fix=fix) from error
    except SpecError as error:
        raise SpecError(subject, error.faults, fix=fix) from error
    good = format_ == _FORMAT and _is_stages(stages, len(spec.stages)) and _are_hashes(hashes)
    if not good:
        raise SpecError(subject, {ONEFILE_KEY: "got other fields than expected"}, fix=fix)
    return OneFile(spec=spec, stages=stages, sha256=hashes)


def _is_stages(value: object, most: int) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most)


def _are_hashes(value: object) -> bool:
    texts: Iterable[object] = [*value, *value.values()] if isinstance(value, dict) else [None]
    return all(isinstance(text, str) for text in texts)
