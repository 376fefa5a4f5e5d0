"""The committed digits cascade as a scenario: trained members, no rivals; for trying the bench out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from orchestrator.decision import softmax
from orchestrator.errors import DataError
from orchestrator.local.digits import digits_split
from orchestrator.local.sessions import LocalMembers
from orchestrator.spec import cascade_from_path
from perf.routes.spec import BenchRepository, BenchRows, Route, Scenario

REPOSITORY = Path(__file__).parents[2] / "model_repository"
CASCADE = "digits_cascade"
MEMBERS = ("digits_small", "digits_large")
DIGITS = Scenario(name="digits", title="digits 8x8, trained members", members=MEMBERS)


def digits_repository(folder: Path | None = None, *, scenario: Scenario = DIGITS) -> BenchRepository:
    """The committed repository, as it lies.

    Args:
        folder: of the repository; None is the checkout's.
        scenario: always the digits.
    """
    alone = {
        f"member_{index}": Route(name=f"member_{index}", title=f"{name} alone", model=name, members=(name,))
        for index, name in enumerate(MEMBERS)
    }
    others = (
        Route(
            name="ensemble",
            title="native ensemble",
            model="digits_ensemble",
            members=("digits_small", "digits_large"),
        ),
        Route(name="committee", title="Committee", model=CASCADE, members=MEMBERS, cascade=True, instances=1),
    )
    return BenchRepository(
        folder=folder or REPOSITORY, scenario=scenario, routes={**alone, **{one.name: one for one in others}}
    )


def digits_rows(scenario: Scenario, *, reach: Sequence[float], rows: int, seed: int) -> BenchRows:
    """Digits of the plan and test splits, drawn with a known share of hard ones.

    Args:
        scenario: the digits.
        reach: 1.0, then the share of rows that the first member is unsure about.
        rows: how many.
        seed: of the draw.

    Raises:
        DataError: there are no rows of one kind.
    """
    threshold = cascade_from_path(REPOSITORY / CASCADE / "1" / "cascade.json").stages[0].threshold
    assert threshold is not None, "the committed plan exits at its first stage"
    images = np.concatenate([digits_split(part).images for part in ("plan", "test")])
    confidence = softmax(LocalMembers(REPOSITORY, scenario.members).ask(scenario.members[0], images)).max(axis=1)
    # Rows so near the threshold that a kernel's rounding could move them are left out.
    hard, easy = (
        np.flatnonzero(found) for found in (confidence < threshold - 1e-3, confidence > threshold + 1e-3)
    )
    wanted = round(reach[1] * rows)
    if (wanted and not len(hard)) or (wanted < rows and not len(easy)):
        raise DataError("digits", got=f"{len(hard)} hard and {len(easy)} easy rows", expected="some of both")
    generator = np.random.default_rng(seed)
    chosen = np.concatenate([generator.choice(hard, wanted), generator.choice(easy, rows - wanted)])
    exits = np.repeat(np.array([1, 0], np.int32), [wanted, rows - wanted])
    order = generator.permutation(rows)
    return BenchRows(rows=images[chosen[order]], exit_stage=exits[order])
