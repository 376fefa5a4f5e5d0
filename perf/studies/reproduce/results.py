"""results.json: every number of the document, from choices that were read back from their file."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from orchestrator.errors import DataError
from orchestrator.local import LocalMembers
from orchestrator.repository.files import sha256_of_path, write_all
from orchestrator.spec.processor import core_count
from perf.harness.machine import machine_here
from perf.studies.reproduce.evaluate import TimingLoad, evaluate_choices, spread_of, timed
from perf.studies.reproduce.parts import PlanPart, Say, TestPart
from perf.studies.reproduce.plans import CHOICES, HEADLINE, Choices, ChosenPlan

RESULTS = "results.json"
WRITTEN_BY = "python -m perf reproduce writes them"
FORMAT = 2
# Formats whose times can be kept: they hold them in the same place.
_TIMED_FORMATS = (1, FORMAT)
_MEASURE_ANEW = "measure everything: leave out --again"
# Claims whose plans are timed.
_TIMED = (HEADLINE, "3", "5")
# Another version of these may draw other pictures.
_DRAWN_WITH = ("pillow", "matplotlib")
# Batch size -> plan -> milliseconds per row, one figure per round.
Figures = Mapping[int, Mapping[ChosenPlan, Sequence[float]]]


def results_of(
    choices: Choices,
    part: TestPart,
    *,
    members: LocalMembers,
    loads: Sequence[TimingLoad],
    command: str,
    classes: Sequence[str],
    say: Say,
    kept: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Evaluates and times the choices; gives the content of results.json.

    Choices were read back from the file they were written to; members are opened with one thread. With earlier
    results of the same choices in `kept`, their times are taken and none are measured.
    """
    found = evaluate_choices(choices, part, say=say)
    about = ("macs", "preprocess_macs", "resolution_px", "parameters")
    known = {
        name: {key: getattr(members.manifest(name), key) for key in about} for name in choices.source["members"]
    }
    plans = _timed_plans(choices)
    figures: Figures
    if kept is not None:
        figures = figures_from_results(kept, plans)
    else:
        figures = {load.batch: timed(plans, part, members=members, load=load, say=say) for load in loads}
    _add_factors(found, choices, known, figures)
    machine = {**machine_here(), "cores": core_count()}
    machine |= {"onnxruntime": onnxruntime.__version__, "numpy": np.__version__}
    timing = {
        "loads": [asdict(load) for load in loads],
        "threads": 1,
        "routes": [_route(plan, figures) for plan in plans],
    }
    return {
        "format": FORMAT,
        "command": command,
        "data": "glyphs",
        "classes": list(classes),
        "plan_part": choices.source,
        "rehearsal": list(choices.margin_validation),
        "test_part": {"rows": part.records.rows, "data_sha256": part.data_sha256},
        "drawn_with": {name: version(name) for name in _DRAWN_WITH},
        "machine": machine if kept is None else kept["machine"],
        "members": known,
        "timing": timing if kept is None else kept["timing"],
        **found,
    }


def _timed_plans(choices: Choices) -> list[ChosenPlan]:
    """Every single model, and both plans of each comparison that says times; each plan once."""
    compared: Iterable[ChosenPlan] = (
        plan
        for line in choices.comparisons
        if line.claim in _TIMED and line.one is not None
        for plan in (line.one, line.other)
    )
    return list(dict.fromkeys([*choices.picture["single"], *compared]))


def _add_factors(found: dict[str, Any], choices: Choices, known: dict[str, Any], figures: Figures) -> None:
    """Adds ratios of times, and of MACs with those of the resizing, to the lines that `evaluate_choices` gave."""
    lines = {claim: iter(of_claim) for claim, of_claim in found["claims"].items()}
    for comparison in choices.comparisons:
        line = next(lines[comparison.claim])
        if comparison.one is None:
            continue
        line["macs_factor_with_resizing"] = _full_cost(line["other"], known) / _full_cost(line["one"], known)
        if comparison.claim in _TIMED:
            line["time_factor"] = _time_factors(figures, comparison.one, comparison.other)
    hardest, headline = found["against_test_best"], choices.headline
    if hardest is not None and headline is not None:
        single = next(one for one in choices.picture["single"] if one.text == hardest["other"]["plan"])
        hardest["time_factor"] = _time_factors(figures, headline, single)


def _full_cost(facts: dict[str, Any], known: dict[str, dict[str, Any]]) -> float:
    """Mean MACs per row, those of the resizing inside the graphs included."""
    spent = np.cumsum(
        [sum(known[name]["macs"] + known[name]["preprocess_macs"] for name in stage) for stage in facts["stages"]]
    )
    return float(spent @ np.array(facts["exit_share"]))


def _time_factors(figures: Figures, one: ChosenPlan, other: ChosenPlan) -> dict[str, dict[str, float]]:
    """Batch size -> how many times as fast `one` is as `other`, formed within each round."""
    return {
        str(batch): spread_of([b / a for a, b in zip(figure[one], figure[other], strict=True)])
        for batch, figure in figures.items()
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
    """The times in earlier results of plans in the order in which they are timed.

    Raises:
        DataError: the results hold times of other plans.
    """
    routes = kept["timing"]["routes"]
    wanted = [([list(stage) for stage in plan.stages], list(plan.thresholds)) for plan in plans]
    if wanted != [(route["stages"], route["thresholds"]) for route in routes]:
        raise DataError("times in the earlier results", got="those of other plans", fix=_MEASURE_ANEW)
    return {
        load["batch"]: {
            plan: route["ms_per_row"][str(load["batch"])]["rounds"]
            for plan, route in zip(plans, routes, strict=True)
        }
        for load in kept["timing"]["loads"]
    }


def write_results(results: dict[str, Any], folder: Path) -> None:
    """Writes results.json whole or not at all."""
    write_all(folder, {RESULTS: json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n"})


def results_from_path(path: Path, *, formats: Sequence[int] = (FORMAT,)) -> dict[str, Any]:
    """Reads results.json.

    Raises:
        DataError: the file is missing or holds something else.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"results {path}", got=error, fix=WRITTEN_BY) from error
    if not isinstance(results, dict) or results.get("format") not in formats:
        expected = f"an object with format {FORMAT}"
        raise DataError(f"results {path}", got="other JSON", expected=expected, fix=WRITTEN_BY)
    return results


def kept_results(folder: Path) -> dict[str, Any]:
    """The results in a folder, to evaluate their choices again.

    Raises:
        DataError: there are none, or the choices beside them are others.
    """
    kept = results_from_path(folder / RESULTS, formats=_TIMED_FORMATS)
    if sha256_of_path(folder / CHOICES) != kept["choices_sha256"]:
        raise DataError(f"{folder / CHOICES}", got="other choices than those of the results", fix=_MEASURE_ANEW)
    return kept


def check_same(kept: dict[str, Any], plan: PlanPart, test: TestPart) -> None:
    """Refuses pictures and members other than those of the kept results.

    Raises:
        DataError: names what differs.
    """
    before = [kept[part]["data_sha256"] for part in ("plan_part", "test_part")]
    if [plan.data_sha256, test.data_sha256] != before:
        drawn = kept.get("drawn_with", {})
        fix = "draw them with " + ", ".join(f"{name} {version}" for name, version in drawn.items())
        fix = f"{fix}, or {_MEASURE_ANEW}" if drawn else _MEASURE_ANEW
        raise DataError("pictures", got="others than those of the earlier results", fix=fix)
    about = test.records.meta["members"]
    before = kept["plan_part"]["members"]
    if changed := [name for name, one in before.items() if about[name]["sha256"] != one["sha256"]]:
        raise DataError("members", got=f"other models than before: {', '.join(changed)}", fix=_MEASURE_ANEW)
