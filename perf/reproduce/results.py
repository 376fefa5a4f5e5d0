"""results.json: everything the document says, as numbers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from orchestrator.errors import DataError
from orchestrator.local.sessions import LocalMembers
from orchestrator.repository.files import write_all
from perf.reproduce.choices import Choices, ChosenPlan, Comparison
from perf.reproduce.choose import HEADLINE
from perf.reproduce.judge import judged
from perf.reproduce.parts import TestPart
from perf.reproduce.timing import Load, spread_of, timed
from perf.results import machine_here

RESULTS = "results.json"
FORMAT = 1
# Claims whose plans are timed.
TIMED = (HEADLINE, "3", "5")
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How it is measured.

    Args:
        loads: ways of asking for what is timed.
        command: that repeats it.
        classes: names of the classes.
    """

    loads: Sequence[Load]
    command: str
    classes: Sequence[str]


def results_of(
    choices: Choices, part: TestPart, *, members: LocalMembers, setting: Setting, say: Say
) -> dict[str, Any]:
    """Judges and times the choices.

    Args:
        choices: read back from the file they were written to.
        part: the test part.
        members: all of them, opened with one thread.
        setting: how.
        say: told what is being done.
    """
    found = judged(choices, part, say=say)
    known = {name: _about(members, name) for name in choices.source["members"]}
    for lines in found["claims"].values():
        for line in lines:
            if line["one"] is not None:
                line["macs_factor_with_resizing"] = _full_cost(line["other"], known) / _full_cost(
                    line["one"], known
                )
    timing = _timing(choices, part, found, members=members, loads=setting.loads, say=say)
    return {
        "format": FORMAT,
        "command": setting.command,
        "data": "glyphs",
        "classes": list(setting.classes),
        "plan_part": choices.source,
        "rehearsal": list(choices.rehearsal),
        "test_part": {"rows": part.records.rows, "data_sha256": part.data_sha256},
        "machine": _machine(),
        "members": known,
        "timing": timing,
        **found,
    }


def _about(members: LocalMembers, name: str) -> dict[str, Any]:
    manifest = members.manifest(name)
    return {key: getattr(manifest, key) for key in ("macs", "preprocess_macs", "resolution_px", "parameters")}


def write_results(results: dict[str, Any], folder: Path) -> None:
    """Writes results.json whole or not at all."""
    write_all(folder, {RESULTS: json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n"})


def results_from_path(path: Path) -> dict[str, Any]:
    """The results a file holds.

    Raises:
        DataError: it is missing or holds something else.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"results {path}", got=error, fix="python -m perf reproduce writes them") from error
    if not isinstance(results, dict) or results.get("format") != FORMAT:
        raise DataError(f"results {path}", got="other JSON", expected=f"an object with format {FORMAT}")
    return results


def _full_cost(facts: dict[str, Any], known: dict[str, dict[str, Any]]) -> float:
    """Mean MACs per row with those of the resizing inside the graphs."""
    spent = np.cumsum(
        [sum(known[name]["macs"] + known[name]["preprocess_macs"] for name in stage) for stage in facts["stages"]]
    )
    return float(spent @ np.array(facts["exit_share"]))


def _timing(
    choices: Choices,
    part: TestPart,
    found: dict[str, Any],
    *,
    members: LocalMembers,
    loads: Sequence[Load],
    say: Say,
) -> dict[str, Any]:
    lines = [one for one in choices.comparisons if one.claim in TIMED]
    plans = [*choices.picture["single"], *_plans(lines)]
    figures = {
        load.batch: timed(plans, part.base, members=members, images=part.images, load=load, say=say)
        for load in loads
    }
    places: dict[str, int] = {}
    for comparison in choices.comparisons:
        place = places.get(comparison.claim, 0)
        places[comparison.claim] = place + 1
        if comparison.claim in TIMED and comparison.one is not None:
            found["claims"][comparison.claim][place]["time_factor"] = {
                str(batch): _factor(figure[comparison.other], figure[comparison.one])
                for batch, figure in figures.items()
            }
    routes = [
        {
            "plan": plan.text,
            "stages": [list(stage) for stage in plan.stages],
            "thresholds": list(plan.thresholds),
            "ms_per_row": {
                str(batch): {**spread_of(figure[plan]), "rounds": figure[plan]}
                for batch, figure in figures.items()
            },
        }
        for plan in dict.fromkeys(plans)
    ]
    return {"loads": [asdict(load) for load in loads], "threads": 1, "routes": routes}


def _plans(lines: Iterable[Comparison]) -> list[ChosenPlan]:
    return [plan for line in lines if line.one is not None for plan in (line.one, line.other)]


def _factor(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    return spread_of([one / other for one, other in zip(above, below, strict=True)])


def _machine() -> dict[str, Any]:
    known: dict[str, Any] = machine_here()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {**known, "cores": cores, "onnxruntime": onnxruntime.__version__, "numpy": np.__version__}
