"""A plan as frozen dataclasses, validated when built; `cascade_json.py` reads and writes it.

Letters used in shapes everywhere: n rows, k classes, m members, s stages. Stages count from 0.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from orchestrator.errors import SpecError, repeated, shown
from orchestrator.spec.derived import Derived, check_tensors, needed, ordered
from orchestrator.spec.output_kind import OUTPUT_KINDS
from orchestrator.spec.request import InputSpec, RowTensor, header_pattern_fault
from orchestrator.spec.validation import (
    DAY_US,
    MOST_CLASSES,
    MOST_COST,
    MOST_COUNTED,
    MOST_INSTANCES,
    MOST_ROWS,
    Faults,
)

PLAN = "cascade.json"  # in the version folder of a cascade
PLAN_SHA256 = "plan_sha256"  # parameter of its configuration: of that file as it was rendered
ONE_TENSOR = "one tensor of numbers of fixed shape"
COMBINES = ("mean_logit", "mean_prob", "vote", "last")
SCORES = ("max_prob", "top2_gap", "neg_entropy", "agreement")
ON_FAILURE = ("error", "answer")
# Each stage has threads of its own.
MAX_STAGES = 64
MAX_WORKERS = 16
MEMBER_TIMEOUT_MS = 30_000
MAX_DEFERRED_BYTES = 1 << 30
# Tensors of a plan whose members lie in no repository yet; rendering replaces them.
UNKNOWN_INPUT = InputSpec(name="input", dtype="FP32", dims=(1,))
UNKNOWN_OUTPUT = "output"


@dataclass(frozen=True, kw_only=True)
class Gear:
    """One cheaper setting of the plan."""

    thresholds: tuple[float | None, ...]  # one per stage but the last; None never exits
    mean_cost: float  # per row, on the rows the plan was fitted on
    accuracy: float | None = None  # share of those rows answered right; None where labels were not used
    exit_share: tuple[float, ...] = ()  # share of those rows answered at each stage

    def __post_init__(self) -> None:
        faults = Faults("gear")
        for threshold in self.thresholds:
            faults.threshold("thresholds", threshold)
        _check_result(faults, self)
        faults.close()


def _check_result(faults: Faults, found: "Gear | Fit") -> None:
    """What a plan did on the rows it was fitted on."""
    faults.number("mean_cost", found.mean_cost, low=0, high=MAX_STAGES * MOST_COST)
    if found.accuracy is not None:
        faults.number("accuracy", found.accuracy, low=0, high=1)
    for share in found.exit_share:
        faults.number("exit_share", share, low=0, high=1)


@dataclass(frozen=True, kw_only=True)
class Gears:
    """Cheaper thresholds of the same plan, and when to shift to them: when more requests come than it can serve.

    Gear 0 is the plan's own thresholds; gears from 1 on are cheaper and less accurate, in that order. The longest
    wait of a deferred row decides which gear is used; a row keeps the gear of its arrival until it is answered.
    """

    cheaper: tuple[Gear, ...]  # the gears from 1 on, each cheaper than the one before
    raise_wait_us: int = 50_000  # longest wait of a deferred row from which on the next cheaper gear is taken
    lower_wait_us: int = 10_000  # longest wait up to which the gear goes a step back; less than `raise_wait_us`
    raise_after_us: int = 100_000  # how long waits must be that long, without a break, before the gear is raised
    # how long waits must be that short before it is lowered; longer, so that gears do not swing
    lower_after_us: int = 1_000_000

    def __post_init__(self) -> None:
        faults = Faults("gears")
        faults.check("cheaper", len(self.cheaper) > 0, "got none, expected at least one")
        for name in ("raise_wait_us", "lower_wait_us", "raise_after_us", "lower_after_us"):
            faults.integer(name, getattr(self, name), low=0, high=DAY_US)
        if not faults.found:
            text = f"got {self.lower_wait_us}, expected less than raise_wait_us {self.raise_wait_us}"
            faults.check("lower_wait_us", self.lower_wait_us < self.raise_wait_us, text)
            costs = [gear.mean_cost for gear in self.cheaper]
            falling = all(after < before for before, after in pairwise(costs))
            faults.check("cheaper", falling, f"got mean costs {costs}, expected each below the one before")
        faults.close()


@dataclass(frozen=True, kw_only=True)
class Member:
    """One model as the cascade asks it."""

    name: str  # Triton model name
    output: str  # name of its class-score tensor, float32 (n, k)
    # its tensor -> the cascade's, those that it reads; empty where it reads all inputs by their own names
    inputs: dict[str, str] = field(default_factory=dict, hash=False)
    output_kind: str = "logits"  # "logits" or "probabilities" (the log is taken before the temperature)
    temperature: float = 1.0  # T in softmax(z / T)
    weight: float = 1.0  # weight in the combination
    cost: float = 0.0  # per row, in the cascade's cost_unit
    max_batch_size: int = 64  # largest batch one call may carry
    instances: int = 1  # how many calls the server runs at once for it; bounds the useful workers
    sha256: str | None = None  # of the model file the thresholds were fitted on; None skips that check
    # of the Triton model that is asked, by number; None leaves the choice to the server
    version: int | None = None
    # files that hold weights beside the model file, path in its version folder -> sha256
    data_files: dict[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        faults = Faults(f"member {self.name}")
        faults.name("name", self.name)
        faults.text("output", self.output)
        faults.tensor_map("inputs", self.inputs)
        faults.one_of("output_kind", self.output_kind, OUTPUT_KINDS)
        for name in ("temperature", "weight"):
            # A wider range would let sums of clipped logits overflow float32.
            faults.number(name, getattr(self, name), low=1e-3, high=1e3)
        faults.cost("cost", self.cost)
        faults.integer("max_batch_size", self.max_batch_size, low=1, high=MOST_ROWS)
        faults.integer("instances", self.instances, low=1, high=MOST_INSTANCES)
        faults.file(self.sha256, self.version)
        _check_data_files(faults, self.data_files)
        faults.close()

    @property
    def input(self) -> str | None:
        """Name of its only tensor; None where that is the cascade's, for plans of one tensor."""
        return next(iter(self.inputs), None)


def _check_data_files(faults: Faults, value: object) -> None:
    if not isinstance(value, dict) or not all(isinstance(part, str) for pair in value.items() for part in pair):
        faults.add("data_files", f"got {shown(value)}, expected an object of paths and hashes")
        return
    outside = [path for path in value if path[:1] == "/" or "\0" in path or ".." in PurePosixPath(path).parts]
    faults.check("data_files", not outside, f"got {', '.join(outside)}, expected paths inside the version folder")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One member, or several asked in parallel."""

    members: tuple[Member, ...]  # in plan order, at least one
    threshold: float | None = None  # exit when score >= threshold; None never exits. The last stage has none.
    low: float | None = None  # also exit, with the abstain bit, when score <= low; None has no window
    # "error" answers UNAVAILABLE when a member fails, "answer" uses what has come (degraded bit)
    on_failure: str = "error"

    def __post_init__(self) -> None:
        faults = Faults("stage")
        faults.check("members", len(self.members) > 0, "got none, expected at least one")
        faults.threshold("threshold", self.threshold)
        faults.threshold("low", self.low)
        if not faults.found and self.low is not None and self.threshold is not None:
            text = f"got {self.low!r}, expected less than the threshold {self.threshold!r}"
            faults.check("low", self.low < self.threshold, text)
        faults.one_of("on_failure", self.on_failure, ON_FAILURE)
        faults.close()

    @property
    def cost(self) -> float:
        """Cost of asking the whole stage for one row."""
        return float(sum(member.cost for member in self.members))


@dataclass(frozen=True, kw_only=True)
class FusedPrefix:
    """One model that runs the leading stages in one graph, so that the first call covers them.

    It gives the output of each of their members, NaN for rows that an earlier stage was sure of; the runtime still
    makes every decision from those outputs. A row that needs a stage the graph skipped for it (a request's
    min_stage or threshold_shift), and every row of a call that failed, goes to the members themselves.
    """

    name: str  # Triton model name; its input is the cascade's, its outputs are called as the members
    stages: int  # how many leading stages it covers, at least 2
    max_batch_size: int = 64  # largest batch one call may carry
    sha256: str | None = None  # of its model file; None skips that check
    # of the Triton model that is asked, by number; None leaves the choice to the server
    version: int | None = None

    def __post_init__(self) -> None:
        faults = Faults(f"fused prefix {self.name}")
        faults.name("name", self.name)
        faults.integer("stages", self.stages, low=2, high=MAX_STAGES)
        faults.integer("max_batch_size", self.max_batch_size, low=1, high=MOST_ROWS)
        faults.file(self.sha256, self.version)
        faults.close()


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds the runtime keeps."""

    max_batch_size: int = 256  # largest request of the cascade itself; larger than a member's, the runtime chunks
    # with so many rows deferred, requests wait a moment; then those that stage 0 is unsure of are refused
    max_deferred_rows: int = 2048
    # as many bytes of their inputs; None means 1 GiB where rows differ in size, and no further limit elsewhere
    max_deferred_bytes: int | None = None
    # threads draining a later stage; None means one more than its members' instances
    workers_per_stage: int | None = None
    # orders the rows of requests that name no deadline; nothing else depends on it
    default_deadline_us: int = 1_000_000
    # so long a stage waits for its members, and a row for its stage; then members without an answer have failed
    member_timeout_ms: int = MEMBER_TIMEOUT_MS

    def __post_init__(self) -> None:
        faults = Faults("limits")
        faults.integer("max_batch_size", self.max_batch_size, low=1, high=MOST_ROWS)
        faults.integer("max_deferred_rows", self.max_deferred_rows, low=1, high=MOST_ROWS)
        if self.max_deferred_bytes is not None:
            faults.integer("max_deferred_bytes", self.max_deferred_bytes, low=1, high=MOST_COUNTED)
        faults.integer("default_deadline_us", self.default_deadline_us, low=1, high=DAY_US)
        faults.integer("member_timeout_ms", self.member_timeout_ms, low=1, high=DAY_US // 1000)
        if self.workers_per_stage is not None:
            faults.integer("workers_per_stage", self.workers_per_stage, low=1, high=MAX_WORKERS)
        faults.close()


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What the thresholds were fitted on, and with what result. Read by people and by `committee check`."""

    data_sha256: str  # hash of the records
    rows: int  # rows used to choose the thresholds
    split: str  # name of the part of the data that those rows are
    target: str  # the constraint and objective, in words
    accuracy: float | None  # share of those rows the plan gets right
    accuracy_ci95: tuple[float, float] | None  # 95 % confidence interval of that share (Clopper-Pearson)
    exit_share: tuple[float, ...]  # share of rows answered at each stage
    mean_cost: float  # per row, in the cascade's cost_unit
    random_weights: bool = False  # True when a member was exported with random weights; its accuracy means nothing
    # whatever else the planner keeps (bounds, calibration), as JSON values
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        faults = Faults("fit")
        faults.integer("rows", self.rows, low=0, high=MOST_COUNTED)
        _check_result(faults, self)
        for bound in self.accuracy_ci95 or ():
            faults.number("accuracy_ci95", bound, low=0, high=1)
        good = self.accuracy_ci95 is None or len(self.accuracy_ci95) == 2
        faults.check("accuracy_ci95", good, f"got {shown(self.accuracy_ci95)}, expected two numbers, or null")
        for name in ("data_sha256", "split", "target"):
            value = getattr(self, name)
            faults.check(name, isinstance(value, str), f"got {shown(value)}, expected a string")
        faults.check("extra", isinstance(self.extra, dict), f"got {shown(self.extra)}, expected an object")
        random = self.random_weights
        faults.check("random_weights", isinstance(random, bool), f"got {shown(random)}, expected true or false")
        faults.close()


@dataclass(frozen=True, kw_only=True)
class CascadeSpec:
    """One cascade (or ensemble: a single stage), complete.

    Raises:
        SpecError: with every fault at once.
    """

    name: str
    inputs: tuple[InputSpec, ...]  # tensors that a request brings
    classes: int
    stages: tuple[Stage, ...]
    derived: tuple[Derived, ...] = ()  # models that make further tensors from them
    labels: tuple[str, ...] | None = None
    combine: str = "mean_logit"
    score: str = "max_prob"
    cost_unit: str = "MACs"
    limits: Limits = field(default_factory=Limits)
    fit: Fit | None = None
    fused_prefix: FusedPrefix | None = None
    gears: Gears | None = None
    # so many leading stages, or all, have their ONNX members run in the cascade's own process, where that can be
    in_process: int = 0
    # regular expression, searched for in the names of request parameters, whatever their case. Parameters
    # that match are headers that Triton forwards, and are passed over. None takes names with a dash, and the
    # registered headers of one word, for headers.
    header_pattern: str | None = None

    def __post_init__(self) -> None:
        faults = Faults(f"cascade {self.name}")
        faults.name("name", self.name)
        faults.integer("classes", self.classes, low=2, high=MOST_CLASSES)
        faults.one_of("combine", self.combine, COMBINES)
        faults.one_of("score", self.score, SCORES)
        faults.text("cost_unit", self.cost_unit)
        if self.labels is not None and len(self.labels) != self.classes:
            faults.add("labels", f"got {len(self.labels)}, expected {self.classes}, one per class")
        faults.class_names("labels", self.labels or ())
        self._check_stages(faults)
        check_tensors(self.inputs, self.derived, {one.name: one.inputs for one in self.members}, faults)
        faults.integer("in_process", self.in_process, low=0, high=MAX_STAGES)
        if self.fused_prefix is not None:
            self._check_fused_prefix(self.fused_prefix, faults)
        for gear in self.gears.cheaper if self.gears is not None else ():
            got, expected = len(gear.thresholds), len(self.stages) - 1
            faults.check("gears", got == expected, f"got {got} thresholds in a gear, expected {expected}")
        fault = None if self.header_pattern is None else header_pattern_fault(self.header_pattern)
        faults.check("header_pattern", fault is None, str(fault))
        faults.close()

    def _check_fused_prefix(self, prefix: FusedPrefix, faults: Faults) -> None:
        most = len(self.stages)
        text = f"got {prefix.stages} stages, expected at most {most}"
        faults.check("fused_prefix", prefix.stages <= most, text)
        is_own = prefix.name != self.name and self.models.count(prefix.name) == 1
        faults.check("fused_prefix", is_own, f"got {prefix.name}, expected a model of its own")
        if not self.has_one_tensor:
            faults.add("fused_prefix", f"got {_listed(self)}, expected {ONE_TENSOR}")
            return
        given = ", ".join(member.name for member in self.members if member.input not in (None, self.input.name))
        text = f"got members with inputs of their own names ({given}), expected one input"
        faults.check("fused_prefix", not given, text)

    def _check_stages(self, faults: Faults) -> None:
        if not self.stages:
            faults.add("stages", "got none, expected at least one")
            return
        text = f"got {len(self.stages)}, expected at most {MAX_STAGES}"
        faults.check("stages", len(self.stages) <= MAX_STAGES, text)
        last = self.stages[-1]
        if last.threshold is not None or last.low is not None:
            count, stages = sum(stage.threshold is not None for stage in self.stages), len(self.stages)
            text = (
                f"got {count} thresholds for {stages} stages, expected {stages - 1}: the last stage always answers"
            )
            faults.add("stages", text)
        models: tuple[Member | Derived, ...] = (*self.members, *self.derived)
        names = [model.name for model in models]
        twice = repeated(names)
        faults.check("stages", not twice, f"got {', '.join(twice)} more than once, expected each model once")
        faults.check("stages", self.name not in names, f"got {self.name} among its own members, a cycle")
        if self.score == "agreement" and len(self.stages) > 1 and len(self.stages[0].members) < 2:
            faults.add("score", "got agreement with one member in stage 0, expected at least two to agree")

    @property
    def members(self) -> tuple[Member, ...]:
        """All members in plan order."""
        return tuple(member for stage in self.stages for member in stage.members)

    @property
    def members_in_process(self) -> tuple[Member, ...]:
        """The members that the plan wants run in the cascade's own process."""
        return tuple(member for stage in self.stages[: self.in_process] for member in stage.members)

    @property
    def planned(self) -> tuple[Member | FusedPrefix | Derived, ...]:
        """All models that the cascade calls: its members, the fused prefix, the deriving models."""
        prefix = () if self.fused_prefix is None else (self.fused_prefix,)
        return (*self.members, *prefix, *self.derived)

    @property
    def models(self) -> tuple[str, ...]:
        """Names of all models that the cascade calls."""
        return tuple(model.name for model in self.planned)

    def with_members(self, change: Callable[[Member], Member]) -> "CascadeSpec":
        """The plan with every member changed."""
        stages = (dataclasses.replace(one, members=tuple(map(change, one.members))) for one in self.stages)
        return dataclasses.replace(self, stages=tuple(stages))

    @property
    def worst_cost(self) -> float:
        """Cost of a row that goes through every stage."""
        return float(sum(self.stage_costs))

    @property
    def stage_costs(self) -> tuple[float, ...]:
        """Cost of each stage for one row: its members, and what is derived for it and for no stage before."""
        new = [set(self.derived_for(stage)) for stage in range(len(self.stages))]
        seen, costs = set[Derived](), list[float]()
        for stage, models in zip(self.stages, new, strict=True):
            costs.append(stage.cost + float(sum(one.cost for one in models - seen)))
            seen |= models
        return tuple(costs)

    @property
    def tensors(self) -> dict[str, RowTensor]:
        """All tensors of a row by name: the inputs, then those that are derived."""
        made = (output for one in self.derived for output in one.outputs)
        return {one.name: one for one in (*self.inputs, *made)}

    def tensors_of(self, model: Member | Derived) -> dict[str, str]:
        """Which of the cascade's tensors a model reads, by its own names."""
        return model.inputs or {one.name: one.name for one in self.inputs}

    def derived_for(self, stage: int) -> tuple[Derived, ...]:
        """The models that make what a stage's members read, in an order in which they can be asked."""
        return self.derived_for_members(self.stages[stage].members)

    def derived_for_members(self, members: Iterable[Member]) -> tuple[Derived, ...]:
        """The same of any members."""
        names = {one.name for one in self.inputs}
        read = (name for member in members for name in self.tensors_of(member).values())
        return needed(ordered(self.derived, names)[0], read)

    @property
    def has_one_tensor(self) -> bool:
        """Whether a row is one tensor of numbers of fixed shape, and nothing else."""
        is_fixed = all(not one.is_text and one.length_axis is None for one in self.inputs)
        return len(self.inputs) == 1 and not self.derived and is_fixed

    @property
    def most_deferred(self) -> tuple[int, int | None]:
        """Rows that may be deferred at once, and bytes of their inputs; None where all rows have one size."""
        rows, size_bytes = self.limits.max_deferred_rows, self.limits.max_deferred_bytes
        if not self.has_one_tensor:
            return rows, MAX_DEFERRED_BYTES if size_bytes is None else size_bytes
        if size_bytes is not None:
            row_bytes = math.prod(self.input.dims) * np.dtype(self.input.numpy_dtype).itemsize
            rows = max(1, min(rows, size_bytes // row_bytes))
        return rows, None

    @property
    def input(self) -> InputSpec:
        """The one tensor of a plan whose rows have no other, for what takes only those.

        Raises:
            SpecError: a row has several tensors, text, or a length that varies.
        """
        if not self.has_one_tensor:
            text = f"got {_listed(self)}, expected {ONE_TENSOR}; nothing else can be used here"
            raise SpecError(f"cascade {self.name}", {"inputs": text})
        return self.inputs[0]


def _listed(spec: CascadeSpec) -> str:
    return ", ".join(f"{one.name} {one.dtype}{list(one.dims)}" for one in spec.tensors.values())
