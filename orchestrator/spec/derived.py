"""Tensors that a model of the server makes from others of the same row, and which of them each stage needs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.errors import repeated
from orchestrator.spec.request import RowTensor
from orchestrator.spec.validation import MOST_ROWS, Faults


@dataclass(frozen=True, kw_only=True)
class DerivedTensor(RowTensor):
    """An output of a deriving model, by which name plans call it."""

    # its name in the model; None where that is the same
    source: str | None = field(default=None, metadata={"key": "from"})

    def __post_init__(self) -> None:
        super().__post_init__()
        faults = Faults("derived tensor")
        if self.source is not None:
            faults.text("from", self.source)
        faults.close()


@dataclass(frozen=True, kw_only=True)
class Derived:
    """A model that makes tensors from others: a tokeniser, a decoder of pictures, features of a table.

    A row gets them at the first stage that needs them, once, and keeps them.
    """

    name: str = field(metadata={"key": "model"})  # Triton model name
    outputs: tuple[DerivedTensor, ...]  # at least one
    # its tensor -> ours; empty where it reads all inputs of the cascade by their own names
    inputs: dict[str, str] = field(default_factory=dict, hash=False)
    max_batch_size: int = 64  # largest batch one call may carry
    cost: float = 0.0  # per row, in the cascade's cost_unit
    # of the Triton model that is asked, by number; None leaves the choice to the server
    version: int | None = None
    sha256: str | None = None  # of its model file; None skips that check

    def __post_init__(self) -> None:
        faults = Faults(f"deriving model {self.name}")
        faults.name("model", self.name)
        faults.check("outputs", len(self.outputs) > 0, "got none, expected at least one tensor")
        faults.tensor_map("inputs", self.inputs)
        faults.integer("max_batch_size", self.max_batch_size, low=1, high=MOST_ROWS)
        faults.cost("cost", self.cost)
        faults.file(self.sha256, self.version)
        faults.close()


def ordered(derived: Iterable[Derived], given: Iterable[str]) -> tuple[tuple[Derived, ...], tuple[Derived, ...]]:
    """Deriving models in an order in which each finds what it reads; and those without such an order, a cycle.

    `given` names the inputs of the cascade.
    """
    known, left, done = set(given), list(derived), list[Derived]()
    while ready := [one for one in left if known.issuperset(one.inputs.values())]:
        done += ready
        known.update(output.name for one in ready for output in one.outputs)
        left = [one for one in left if one not in ready]
    return tuple(done), tuple(left)


def needed(derived: Iterable[Derived], tensors: Iterable[str]) -> tuple[Derived, ...]:
    """Which of the deriving models, in an order as from `ordered`, these tensors are made by, others between."""
    wanted, found = set(tensors), list[Derived]()
    for one in reversed(tuple(derived)):
        if not wanted.isdisjoint(output.name for output in one.outputs):
            found.append(one)
            wanted.update(one.inputs.values())
    return tuple(reversed(found))


def check_tensors(
    inputs: Sequence[RowTensor],
    derived: Sequence[Derived],
    members: Mapping[str, Mapping[str, str]],
    faults: Faults,
) -> None:
    """Adds what does not fit between the tensors of a cascade and the models that read them, members by name."""
    faults.check("inputs", len(inputs) > 0, "got none, expected at least one")
    names = [one.name for one in inputs]
    if twice := repeated(names):
        faults.add("inputs", f"got {', '.join(twice)} more than once, expected each input once")
    made = [output.name for one in derived for output in one.outputs]
    if twice := repeated([*dict.fromkeys(names), *made]):
        faults.add("derived", f"got {', '.join(twice)} twice, expected tensors of names of their own")
    known = ", ".join([*names, *made])
    read = {("stages", f"member {name}"): tensors for name, tensors in members.items()}
    read |= {("derived", f"model {one.name}"): one.inputs for one in derived}
    for (part, reader), tensors in read.items():
        if missing := set(tensors.values()) - {*names, *made}:
            text = f"{reader} reads {', '.join(sorted(missing))}, which nothing gives, expected one of {known}"
            faults.add(part, text)
    _, cycle = ordered(derived, names)
    if cycle and "derived" not in faults.found:
        path = ", ".join(one.name for one in cycle)
        faults.add("derived", f"got a cycle ({path}): none of them has what it reads")
