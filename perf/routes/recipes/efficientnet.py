"""EfficientNet-B0 before B3 with random weights, through the ordinary export of members."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from export.parity import varied_rows
from orchestrator.errors import DataError
from orchestrator.spec import CascadeSpec, TensorSpec
from perf.routes.scenario import Recipe, imposed_cascade
from perf.routes.spec import Rows, Scenario

MEMBERS = ("efficientnet_b0", "efficientnet_b3")
# The committee's images are as large as its largest member wants them; the smaller one resizes inside its graph.
IMAGE = TensorSpec(name="image", dtype="UINT8", dims=(3, 300, 300))
EXIT_SHARE = (0.85,)
_ROWS_SEED = 30_000_000
_PARITY_ROWS = 8


def efficientnet(*, pool: int = 1024, recorded: int = 256) -> Recipe:
    """The scenario.

    Args:
        pool: rows to choose from; 101 that all reach B3 have to be among them.
        recorded: rows the threshold is taken from.
    """
    scenario = Scenario(
        name="efficientnet",
        title="EfficientNet-B0 before B3, random weights",
        members=MEMBERS,
        imposed=True,
    )
    return Recipe(
        scenario=scenario,
        pool=pool,
        make=partial(_make, recorded=recorded),
        rows_at=rows_at,
        settings=str(recorded),
    )


def rows_at(numbers: Sequence[int]) -> Rows:
    """Rows by number, uint8 (n, 3, 300, 300)."""
    return np.concatenate([varied_rows(IMAGE, 1, seed=_ROWS_SEED + number) for number in numbers])


def _make(repository: Path, *, recorded: int) -> CascadeSpec:
    try:  # optional: exporting takes torch and transformers
        from export.member import export_committee, member_exports
        from export.sources import ExportOptions
    except ImportError as error:
        raise DataError(
            "scenario efficientnet",
            got=f"no package {error.name}",
            expected="torch and transformers",
            fix="run `make setup`",
        ) from error
    plans = member_exports(MEMBERS, ExportOptions(random_weights=True))
    plans = [dataclasses.replace(plan, parity_rows=_PARITY_ROWS) for plan in plans]
    export_committee(repository, plans, force=False, progress=lambda _: None)
    return imposed_cascade(
        repository, MEMBERS, rows_at, name="committee", recorded=recorded, exit_share=EXIT_SHARE
    )
