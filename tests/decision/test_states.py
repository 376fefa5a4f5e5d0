"""Every slot moves as the table of states has it, and the drawing of it in ARCHITECTURE.md is up to date."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.decision import CascadeRun, Policy
from orchestrator.decision.run import ASKED, FREE, STATES, TRANSITIONS
from tests.decision.test_run import SURE, UNSURE, arrive, logits, spec_of, stage

ARCHITECTURE = Path(__file__).parents[2] / "ARCHITECTURE.md"
BEGIN, END = "<!-- states: begin -->\n", "<!-- states: end -->"
THREE = spec_of(stage("a", threshold=0.9), stage("b", threshold=0.9), stage("c"))
# What a caller may do -> the events that slots go through then.
EVENTS_OF_CALL = {
    "admit": {"enter"},
    "next": {"take"},
    "feed": {"defer", "finish"},
    "abandon": {"finish"},
    "expire": {"drop"},
    "drop": {"drop"},
}
EDGES = {(event, before, after) for event, moves in TRANSITIONS.items() for before, after in moves.items()}


def drawing() -> str:
    """The table of states as a diagram, as it stands in ARCHITECTURE.md."""
    edges = "".join(
        f"    {STATES[before]} --> {STATES[after]}: {event}\n"
        for event, moves in TRANSITIONS.items()
        for before, after in moves.items()
    )
    return f"```mermaid\nstateDiagram-v2\n    [*] --> {STATES[FREE]}\n{edges}```\n"


class Watched(CascadeRun):
    """A run that holds each of its calls to the table, slot by slot.

    Attributes:
        seen: event, state before and state after of every move.
        flying: slots of each batch that members are asked about.
        inside: rows without an answer.
    """

    def __init__(self) -> None:
        super().__init__(THREE, capacity_rows=2)
        self.seen: set[tuple[str, int, int]] = set()
        self.flying: list[np.ndarray] = []
        self.inside = 0

    def _move(self, slots: np.ndarray, event: str) -> None:
        assert len(np.unique(slots)) == len(slots)
        before = self._state[slots].tolist()
        super()._move(slots, event)
        self.seen |= {(event, *states) for states in zip(before, self._state[slots].tolist(), strict=True)}

    def call(self, name: str, *arguments: object) -> object:
        """Calls a method; its moves are of the events it may cause, and nothing else has changed a state."""
        before, earlier = self._state.copy(), self.seen
        self.seen = set()
        result = getattr(self, name)(*arguments)
        assert self.seen <= EDGES
        assert {event for event, *_ in self.seen} <= EVENTS_OF_CALL[name]
        states = zip(before.tolist(), self._state.tolist(), strict=False)  # the table may have grown
        assert {moved for moved in states if moved[0] != moved[1]} <= {edge[1:] for edge in self.seen}
        self.seen |= earlier
        return result

    def random_call(self, rng: np.random.Generator, step: int) -> None:
        """One call of a caller who behaves, at a time of `step` microseconds."""
        some = int(rng.integers(1, 5))
        said = [SURE if rng.random() < 0.4 else UNSURE for _ in range(8)]
        name = rng.choice([*EVENTS_OF_CALL, "admit", "next", "feed"])
        if name == "admit":
            policy = Policy(deadline_us=None if rng.random() < 0.5 else int(rng.integers(1, 40)))
            rows = arrive(some, policy, token=step, now_ns=step * 1000)
            self.inside += len(self.call("admit", rows, [logits(*said[:some])]).deferred)
        elif name == "next":
            slots = self.call("next", int(rng.integers(1, 3)), some)
            self.flying += [slots] if len(slots) else []
        elif name == "expire":
            self.inside -= len(self.call("expire", step * 1000).answers)
        elif name == "drop":
            self.inside -= self.call("drop", np.array([int(rng.integers(0, 40))]))
        elif self.flying:
            slots = self.flying.pop(int(rng.integers(0, len(self.flying))))
            self.inside -= int((self._state[slots] == ASKED).sum())
            if name == "feed":
                self.inside += len(self.call("feed", slots, [logits(*said[: len(slots)])]).deferred)
            else:
                self.call("abandon", slots)


def seen_in(seed: int) -> set[tuple[str, int, int]]:
    """The moves of a run under a random mix of calls, which loses no slot and gives none twice."""
    rng, run = np.random.default_rng(seed), Watched()
    for step in range(40):
        run.random_call(rng, step)
        in_flight = np.concatenate([np.zeros(0, int), *run.flying])
        assert len(np.unique(in_flight)) == len(in_flight)
        assert run.waiting(1) + run.waiting(2) <= run.inside <= run.rows_in_table
    for slots in run.flying:
        run.call("abandon", slots)
    run.call("drop", np.arange(40))
    assert run.rows_in_table == 0
    assert sorted(run._free.tolist()) == list(range(run.capacity_rows))
    return run.seen


@given(st.integers(0, 2**20))
def test_no_call_moves_a_slot_in_a_way_that_is_not_in_the_table(seed: int) -> None:
    seen_in(seed)


@pytest.mark.parametrize("edge", sorted(EDGES), ids=lambda edge: f"{edge[0]}_{STATES[edge[1]]}")
def test_every_transition_of_the_table_happens(edge: tuple[str, int, int]) -> None:
    assert any(edge in seen_in(seed) for seed in range(50))


def test_the_drawing_of_the_states_is_the_one_of_the_table() -> None:
    text = ARCHITECTURE.read_text(encoding="utf-8")
    shown = text[text.index(BEGIN) + len(BEGIN) : text.index(END)]
    assert shown == drawing(), f"put this between the two markers:\n{drawing()}"
