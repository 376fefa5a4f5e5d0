"""What a one-file cascade says of itself: its plan and its members, kept in the model's own metadata.

`python -m export onefile` writes such models; what is needed to tell later whether one is out of date lies here.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from orchestrator.errors import SpecError
from orchestrator.graphs.editing import own_metadata
from orchestrator.spec import CascadeSpec, Limits, Stage, cascade_from_json, json_from_cascade
from orchestrator.spec.documents import value_from_json

ONEFILE_KEY = "onefile"
_FORMAT = 1
_AGAIN = "write it again with `python -m export onefile`"


@dataclass(frozen=True, kw_only=True)
class OneFile:
    """One ONNX graph that holds a cascade, or its leading stages."""

    spec: CascadeSpec  # the cascade, without what changes no answer; see `answering`
    stages: int | None  # how many leading stages it covers and gives the raw outputs of; None for a whole cascade
    sha256: Mapping[str, str]  # member name -> hash of the model file that went in

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
            found["plan"] = f"differs from {plan.name}'s cascade.json; {_AGAIN}"
        for name, digest in self.sha256.items():
            now = hashes.get(name)
            if now is not None and now != digest:
                text = f"model file has hash {now[:12]}..., the one inside {digest[:12]}..."
                found[f"member {name}"] = f"{text}; {_AGAIN}"
        return found


def onefile_name(spec: CascadeSpec, stages: int | None = None) -> str:
    """The usual name of a cascade's one-file model, or of the one of its leading stages."""
    return f"{spec.name}_onefile" if stages is None else f"{spec.name}_lead"


def answering(spec: CascadeSpec) -> CascadeSpec:
    """A plan without the parts that change no answer: its fit, the members' places, and limits of the runtime."""
    limits = Limits(max_batch_size=spec.limits.max_batch_size)
    spec = dataclasses.replace(spec, fit=None, fused_prefix=None, in_process=0, limits=limits)
    return spec.with_members(lambda one: dataclasses.replace(one, version=None, data_files={}))


def metadata_from_onefile(onefile: OneFile) -> dict[str, str]:
    """What to put into the model's metadata."""
    spec = json.loads(json_from_cascade(onefile.spec))
    value = {"format": _FORMAT, "stages": onefile.stages, "sha256": dict(onefile.sha256), "cascade": spec}
    return {ONEFILE_KEY: json.dumps(value, ensure_ascii=False, allow_nan=False)}


def onefile_from_model(model: onnx.ModelProto, *, subject: str) -> OneFile | None:
    """What a model says of itself, or None where it is no one-file cascade of ours.

    Raises:
        SpecError: it is one, and what it says cannot be read.
    """
    text = own_metadata(model).get(ONEFILE_KEY)
    if text is None:
        return None
    try:
        value = value_from_json(text)
        format_, stages, hashes = value["format"], value["stages"], value["sha256"]
        spec = cascade_from_json(json.dumps(value["cascade"]), subject)
    except (ValueError, KeyError, TypeError) as error:
        message = f"got {type(error).__name__}, expected what was written with it"
        raise SpecError(subject, {ONEFILE_KEY: message}, fix=_AGAIN) from error
    except SpecError as error:
        raise SpecError(subject, error.faults, fix=_AGAIN) from error
    places = range(1, len(spec.stages) + 1)
    good = stages is None or (type(stages) is int and stages in places)
    good &= isinstance(hashes, dict) and all(isinstance(text, str) for pair in hashes.items() for text in pair)
    if format_ != _FORMAT or not good:
        raise SpecError(subject, {ONEFILE_KEY: "got other fields than expected"}, fix=_AGAIN)
    return OneFile(spec=spec, stages=stages, sha256=hashes)
