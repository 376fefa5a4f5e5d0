"""results.json: everything the document says, as numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from orchestrator.errors import DataError
from orchestrator.local.sessions import LocalMembers
from orchestrator.repository.files import write_all
from orchestrator.spec.processor import core_count
from perf.harness.machine import machine_here
from perf.studies.reproduce.choices import HEADLINE, Choices, ChosenPlan, PlanComparison
from perf.studies.reproduce.judge import judged
from perf.studies.reproduce.parts import TestPart
from perf.studies.reproduce.timing import TimingLoad, spread_of, timed

RESULTS = "results.json"
WRITTEN_BY = "python -m perf reproduce writes them"
FORMAT = 2
# Formats whose times can be kept: they lie at the same place in all of them.
TIMED_FORMATS = (1, FORMAT)
# Claims whose plans are timed.
TIMED = (HEADLINE, "3", "5")
# Another version of these may draw other pictures.
DRAWN_WITH = ("pillow", "matplotlib")
Say = Callable[[str], None]
# Batch -> plan -> milliseconds per row in every round.
Figures = Mapping[int, Mapping[ChosenPlan, Sequence[float]]]


@dataclass(frozen=True, kw_only=True)
class ResultOptions:
    """How it is measured.

    Args:
        loads: ways of asking for what is timed.
        command: that repeats it.
        classes: names of the classes.
        kept: earlier results of the same choices, whose times are taken; None measures them.
    """

    loads: Sequence[TimingLoad]
    command: str
    classes: Sequence[str]
    kept: dict[str, Any] | None = None


def results_of(
    choices: Choices, part: TestPart, *, members: LocalMembers, setting: ResultOptions, say: Say
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
    timing = _timing(choices, part, found, members=members, setting=setting, say=say)
    return {
        "format": FORMAT,
        "command": setting.command,
        "data": "glyphs",
        "classes": list(setting.classes),
        "plan_part": choices.source,
        "rehearsal": list(choices.margin_validation),
        "test_part": {"rows": part.records.rows, "data_sha256": part.data_sha256},
        "drawn_with": {name: version(name) for name in DRAWN_WITH},
        "machine": _machine() if setting.kept is None else setting.kept["machine"],
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


def results_from_path(path: Path, *, formats: Sequence[int] = (FORMAT,)) -> dict[str, Any]:
    """The results a file holds.

    Args:
        path: of the file.
        formats: that will do.

    Raises:
        DataError: it is missing or holds something else.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"results {path}", got=error, fix=WRITTEN_BY) from error
    if not isinstance(results, dict) or results.get("format") not in formats:
        expected = f"an object with format {FORMAT}"
        raise DataError(f"results {path}", got="other JSON", expected=expected, fix=WRITTEN_BY)
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
    setting: ResultOptions,
    say: Say,
) -> dict[str, Any]:
    """Times of single models and of the plans in `TIMED`; their factors are added to the lines of `found`."""
    plans = list(dict.fromkeys([*choices.picture["single"], *_plans(choices.comparisons)]))
    figures: Figures
    if setting.kept is not None:
        figures = figures_from_results(setting.kept, plans)
    else:
        figures = {
            load.batch: timed(plans, part.base, members=members, images=part.images, load=load, say=say)
            for load in setting.loads
        }
    places: dict[str, int] = {}
    for comparison in choices.comparisons:
        place = places.get(comparison.claim, 0)
        places[comparison.claim] = place + 1
        if comparison.claim in TIMED and comparison.one is not None:
            line = found["claims"][comparison.claim][place]
            line["time_factor"] = _factors(figures, comparison.one, comparison.other)
    hardest, plan = found["against_test_best"], choices.headline
    if hardest is not None and plan is not None:
        single = next(one for one in choices.picture["single"] if one.text == hardest["other"]["plan"])
        hardest["time_factor"] = _factors(figures, plan, single)
    if setting.kept is not None:
        kept: dict[str, Any] = setting.kept["timing"]
        return kept
    return {
        "loads": [asdict(load) for load in setting.loads],
        "threads": 1,
        "routes": [_route(plan, figures) for plan in plans],
    }


def _route(plan: ChosenPlan, figures: Figures) -> dict[str, Any]:
    return {
        "plan": plan.text,
        "stages": [list(stage) for stage in plan.stages],
        "thresholds": list(plan.thresholds),
        "ms_per_row": {
            str(batch): {**spread_of(figure[plan]), "rounds": figure[plan]} for batch, figure in figures.items()
        },
    }


def figures_from_results(kept: dict[str, Any], plans: Sequence[ChosenPlan]) -> Figures:
    """The times that earlier results hold.

    Args:
        kept: the results.
        plans: as they were timed, in order.

    Raises:
        DataError: they hold times of other plans.
    """
    routes = kept["timing"]["routes"]
    wanted = [([list(stage) for stage in plan.stages], list(plan.thresholds)) for plan in plans]
    if wanted != [(route["stages"], route["thresholds"]) for route in routes]:
        raise DataError(
            "times in the earlier results", got="those of other plans", fix="measure everything: leave out --again"
        )
    return {
        load["batch"]: {
            plan: route["ms_per_row"][str(load["batch"])]["rounds"]
            for plan, route in zip(plans, routes, strict=True)
        }
        for load in kept["timing"]["loads"]
    }


def _plans(lines: Iterable[PlanComparison]) -> list[ChosenPlan]:
    return [
        plan for line in lines if line.claim in TIMED and line.one is not None for plan in (line.one, line.other)
    ]


def _factors(figures: Figures, one: ChosenPlan, other: ChosenPlan) -> dict[str, dict[str, float]]:
    """Batch -> how many times as fast one is as the other, formed within each round."""
    return {
        str(batch): spread_of([b / a for a, b in zip(figure[one], figure[other], strict=True)])
        for batch, figure in figures.items()
    }


def _machine() -> dict[str, Any]:
    known: dict[str, Any] = machine_here()
    return {**known, "cores": core_count(), "onnxruntime": onnxruntime.__version__, "numpy": np.__version__}
