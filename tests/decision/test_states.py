"""Every slot moves as the table of states has it, and the drawing of it in ARCHITECTURE.md is up to date."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.decision import CascadeRun, Policy
from orchestrator.decision.run import FREE, STATES, TRANSITIONS
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
    "expire": {"give_up"},
    "drop": {"give_up"},
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
    """

    def __init__(self) -> None:
        super().__init__(THREE, capacity_rows=2)
        self.seen: set[tuple[str, int, int]] = set()

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
        after = self._state[: len(before)]
        # Two moves in one call: a row that enters a slot, or one that a fused prefix takes on.
        changed = {(b, a) for b, a in zip(before.tolist(), after.tolist(), strict=True) if b != a}
        assert changed <= {(b, a) for _, b, a in self.seen}
        self.seen |= earlier
        return result


def seen_in(seed: int) -> set[tuple[str, int, int]]:
    """The moves of a run under a random mix of calls."""
    rng = np.random.default_rng(seed)
    run, flying = Watched(), []
    for step in range(40):
        some = int(rng.integers(1, 5))
        said = [SURE if rng.random() < 0.4 else UNSURE for _ in range(8)]
        name = rng.choice([*EVENTS_OF_CALL, "admit", "next", "feed"])
        if name == "admit":
            policy = Policy(deadline_us=None if rng.random() < 0.5 else int(rng.integers(1, 40)))
            run.call("admit", arrive(some, policy, token=step, now_ns=step * 1000), [logits(*said[:some])])
        elif name == "next":
            slots = run.call("next", int(rng.integers(1, 3)), some)
            flying += [slots] if len(slots) else []
        elif name == "expire":
            run.call("expire", step * 1000)
        elif name == "drop":
            run.call("drop", np.array([int(rng.integers(0, 40))]))
        elif flying:
            slots = flying.pop(int(rng.integers(0, len(flying))))
            if name == "feed":
                run.call("feed", slots, [logits(*said[: len(slots)])])
            else:
                run.call("abandon", slots)
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
