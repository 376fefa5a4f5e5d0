"""`python -m perf tables`: rows and members of docs/tabular.md, and its figures when its commands have run."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

from export.commands.console import END, needs, write_block
from orchestrator.files import write_file
from orchestrator.planner.records import Records, records_from_path
from orchestrator.planner.replay import evaluate
from orchestrator.rows.digits import DigitsSplit, digits_split
from orchestrator.spec import CascadeSpec, cascade_from_path
from perf.harness.machine import write_json
from perf.harness.report import markdown_table

FOLDER = Path("build/tables")
BEGIN = "<!-- begin: python -m perf tables -->"
TREES, NETWORK = "boosted.txt", "network.joblib"
PARTS = ("plan", "test")
COLUMNS = tuple(f"p{row}{column}" for row in range(8) for column in range(8))
PAGE = Path("docs/tabular.md")
_PLANS = ("plan.json", "alone.json", "batches.json")
_HEAD = (
    "cost counted in",
    "plan",
    "exits, %",
    "test rows, %",
    "against the network, points",
    "cost per row",
    "times",
)


def tables(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write into.")] = FOLDER,
    page: Annotated[
        Path | None,
        typer.Option(
            help="Train nothing: write the figures of what the page's commands left there into the page."
        ),
    ] = None,
) -> None:
    """Train boosted trees and a network on the digits of scikit-learn as a table, and write rows as .csv.

    The folder gets plan.csv and test.csv, boosted.txt of LightGBM and network.joblib of scikit-learn.

    Example: python -m perf tables -o build/tables
    """
    if page is not None:
        figures = figures_from_folder(output)
        write_block(page, BEGIN, block_from_figures(figures))
        write_json(figures, page.with_suffix(".json"))
        typer.echo(f"Written: {page}, {page.with_suffix('.json')}")
        return
    output.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        write_file(output / f"{part}.csv", csv_from_split(digits_split(part)))
    with needs("perf tables"):
        write_members(output, digits_split("train"))
    typer.echo(f"Written: {output}: plan.csv, test.csv, {TREES}, {NETWORK}")


def features(split: DigitsSplit) -> npt.NDArray[np.float32]:
    """Rows as a table has them, float32 (n, 64)."""
    return split.images.reshape(len(split.ids), len(COLUMNS))


def csv_from_split(split: DigitsSplit) -> str:
    """A part as CSV: id, the 64 numbers, label."""
    rows = features(split).astype(int).tolist()
    lines = [["id", *COLUMNS, "label"]]
    lines += [[one, *row, label] for one, row, label in zip(split.ids, rows, split.labels, strict=True)]
    return "".join(",".join(map(str, line)) + "\n" for line in lines)


def write_members(folder: Path, train: DigitsSplit) -> None:
    """Trains both on the train split, with fixed seeds, and stores them as their libraries do."""
    # Optional packages.
    import joblib
    import lightgbm
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler

    rows = features(train)
    trees = lightgbm.LGBMClassifier(
        n_estimators=15, num_leaves=7, learning_rate=0.2, min_child_samples=5, random_state=0, n_jobs=1, verbose=-1
    )
    trees.fit(rows, train.labels).booster_.save_model(str(folder / TREES))
    layers = MLPClassifier((512, 512), alpha=0.01, max_iter=60, tol=0.0, n_iter_no_change=60, random_state=0)
    joblib.dump(make_pipeline(MinMaxScaler(), layers).fit(rows, train.labels), folder / NETWORK)


def figures_from_folder(folder: Path) -> dict[str, Any]:
    """What the page's table says, of its plans and records of the test rows; DataError where one is missing."""
    records = records_from_path(folder / "test.npz")
    specs = [cascade_from_path(folder / name) for name in _PLANS]
    return {"rows": records.rows, "plans": [_figures(spec, records) for spec in specs]}


def _figures(spec: CascadeSpec, records: Records) -> dict[str, Any]:
    found = evaluate(spec, records, reference="network")
    timing: dict[str, Any] = {} if spec.fit is None else dict(spec.fit.extra.get("timing", {}))
    alone = records.cost["network"]
    if timing:
        # The search part's exits; what is predicted of a plan is compared with what is predicted of the network.
        other = next((one["ms"] for one in timing["alternatives"] if one["stages"] == [["network"]]), timing["ms"])
        alone = other
    cost = timing.get("ms", found.cascade.mean_cost)
    return {
        "unit": spec.cost_unit if not timing else f"ms, {timing['load']}",
        "machine": timing.get("machine", {}).get("cpu"),
        "stages": [[member.name for member in stage.members] for stage in spec.stages],
        "exit_share": list(found.cascade.exit_share),
        "accuracy": found.cascade.accuracy,
        "accuracy_ci95": list(found.cascade.accuracy_ci95),
        "difference": found.difference,
        "difference_ci95": list(found.difference_ci95),
        "cost": cost,
        "network_cost": alone,
    }


def block_from_figures(figures: dict[str, Any]) -> str:
    """The page's table."""
    return "\n".join([BEGIN, *markdown_table(_HEAD, map(_row, figures["plans"])), END])


def _row(plan: dict[str, Any]) -> tuple[str, ...]:
    low, high = (100 * one for one in plan["accuracy_ci95"])
    less, more = (100 * one for one in plan["difference_ci95"])
    digits = ",.0f" if plan["unit"] == "MACs" else ".3f"
    is_network = plan["stages"] == [["network"]]
    return (
        plan["unit"],
        ", then ".join(" and ".join(stage) for stage in plan["stages"]),
        " / ".join(f"{100 * share:.0f}" for share in plan["exit_share"]),
        f"{100 * plan['accuracy']:.1f} [{low:.1f}, {high:.1f}]",
        "the same" if is_network else f"{100 * plan['difference']:+.1f} [{less:+.1f}, {more:+.1f}]",
        f"{plan['cost']:{digits}} of {plan['network_cost']:{digits}}",
        f"{plan['network_cost'] / plan['cost']:.1f}",
    )
