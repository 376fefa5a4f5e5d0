"""What one request may ask of the cascade, read from its parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.errors import InputError

# Longer would overflow nothing, but a day is past any client's patience and most likely a wrong unit.
MAX_DEADLINE_US = 86_400_000_000
# A caller's own words go back to it shortened.
MAX_ECHO = 40
PARAMETERS = {
    "min_stage": "no exit before this stage",
    "max_stage": "answer at this stage at the latest",
    "threshold_shift": "added to every finite threshold, -1 to 1, positive is stricter",
    "deadline_us": "microseconds from arrival until the best answer so far is due",
    "gear": "judge by this gear's thresholds whatever the load, 0 for the plan's own",
}
# The protocol's own request parameters: they say nothing about the decision and are not ours to refuse.
PROTOCOL = frozenset(
    ("binary_data_output", "headers", "priority", "sequence_end", "sequence_id", "sequence_start", "timeout")
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """One request's wishes; they apply to all of its rows."""

    min_stage: int = 0
    max_stage: int | None = None
    threshold_shift: float = 0.0
    deadline_us: int | None = None
    gear: int | None = None

    @property
    def is_plain(self) -> bool:
        """Whether rows are judged as the plan has it; a deadline does not change how."""
        return self is DEFAULT or (
            self.min_stage == 0 and self.max_stage is None and self.threshold_shift == 0 and self.gear is None
        )


DEFAULT = Policy()


def policy_from_parameters(parameters: Mapping[str, object], stages: int, gears: int = 1) -> Policy:
    """The policy a request asks for.

    Args:
        parameters: as the request carries them.
        stages: number of stages of the cascade.
        gears: number of its gears, the plan's own thresholds among them.

    Raises:
        InputError: an unknown parameter, or a value of the wrong type or out of range.
    """
    if not parameters:
        return DEFAULT
    values = {k: v for k, v in parameters.items() if k not in PROTOCOL and not k.startswith("triton_")}
    unknown = sorted(set(values) - set(PARAMETERS))
    if unknown:
        named = ", ".join(repr(name[:MAX_ECHO]) for name in unknown[:3])
        raise InputError("request parameters", got=named, expected=f"only {', '.join(PARAMETERS)}")
    policy = Policy(
        min_stage=_integer(values, "min_stage", 0, high=stages - 1) or 0,
        max_stage=_integer(values, "max_stage", 0, high=stages - 1),
        threshold_shift=_shift(values),
        deadline_us=_integer(values, "deadline_us", 1, high=MAX_DEADLINE_US),
        gear=_integer(values, "gear", 0, high=gears - 1),
    )
    if policy.max_stage is not None and policy.min_stage > policy.max_stage:
        raise InputError(
            "request parameter min_stage",
            got=policy.min_stage,
            expected=f"at most max_stage {policy.max_stage}",
        )
    return policy


def _integer(values: Mapping[str, object], name: str, low: int, *, high: int) -> int | None:
    value = values.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InputError(
            f"request parameter {name}", got=repr(value), expected=f"a whole number from {low} to {high}"
        )
    return value


def _shift(values: Mapping[str, object]) -> float:
    value = values.get("threshold_shift", 0.0)
    # Some clients have no floating-point parameters, so a number in a string is taken as well.
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            value = math.nan
    good = isinstance(value, int | float) and not isinstance(value, bool) and -1 <= value <= 1
    if not good:
        raise InputError(
            "request parameter threshold_shift",
            got=repr(values["threshold_shift"]),
            expected="a number from -1 to 1, positive is stricter",
        )
    return float(value)  # type: ignore[arg-type]
