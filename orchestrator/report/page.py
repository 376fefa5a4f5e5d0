"""Writes a report: the page, rendered from page.html.j2, and its charts as PNGs."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from orchestrator.errors import DataError
from orchestrator.files import disk_faults, write_file
from orchestrator.planner.plan import FrontierPoint
from orchestrator.planner.records import Records
from orchestrator.progress import Progress, no_progress
from orchestrator.report import words
from orchestrator.report.charts import (
    CLASSES_DRAWN,
    COLOURS,
    Chart,
    charts_from_report,
    sketches_from_report,
    slider_chart,
)
from orchestrator.report.data import Report, report_from_records, sampled_rows, slider_data
from orchestrator.spec import CascadeSpec, Member

# Facts of the guarantee that the page's sentence about it says already.
_SAID = ("statement", "certified", "rows", "losses", "gains", "counted", "bound", "method", "delta")


def write_report(
    folder: Path,
    spec: CascadeSpec,
    records: Records,
    *,
    frontier: Sequence[FrontierPoint] = (),
    pool: Sequence[Member] = (),
    progress: Progress = no_progress,
) -> Path:
    """Writes `index.html`, which needs no other file, and every picture as a PNG.

    Args:
        folder: made if it is not there; other files in it stay.
        spec: the plan; its `fit.extra` knows the guarantee, the temperatures and the reference.
        records: n rows of all its members, and of any others it is compared with; costs in the plan's unit.
        frontier: of the search that found the plan.
        pool: members the plan was chosen from, with the temperatures it was chosen with; without
            them others than the plan's are as the records describe them.
        progress: called for the drawing, with a step per PNG.

    Returns:
        path of the page.

    Raises:
        DataError: the records do not fit the plan, or the folder cannot be written to.
        DiskError: the disk is full.
    """
    with _new_folder(folder):
        report = report_from_records(spec, records, frontier=frontier, pool=pool)
        with progress("drawing the report", len(sketches_from_report(report))) as advance:
            charts = charts_from_report(report, advance=advance)
        contents = {f"{chart.name}.png": chart.png for chart in charts}
        # The page goes last: where it is, the rest is.
        contents["index.html"] = page_from_report(report, charts).encode()
        try:
            for name, content in contents.items():
                write_file(folder / name, content)
        except OSError as error:
            raise _unwritable(folder, error) from error
    return folder / "index.html"


def page_from_report(report: Report, charts: Sequence[Chart]) -> str:
    """The whole text of index.html; equal reports give equal texts."""
    environment = Environment(
        loader=PackageLoader("orchestrator.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "cost": lambda cost: words.cost_words(cost, report.spec.cost_unit),
        "percent": words.percent,
        "between": words.between,
        "signed": words.signed,
        "threshold": words.threshold_words,
        "times": words.times_words,
    }
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    sliders = slider_chart(report) if report.threshold_curves else None
    return environment.get_template("page.html.j2").render(
        report=report,
        charts={chart.name: chart.svg for chart in charts},
        colours=COLOURS,
        slider_chart=sliders,
        slider_data=slider_data(report) | {"prefixes": words.PREFIXES, "chart": _axes(sliders)},
        sampled=len(sampled_rows(report.rows)),
        ranked=sorted(
            [report.plan, *report.baselines], key=lambda one: (one.mean_cost is None, -(one.mean_cost or 0))
        ),
        worse=sum(one.interval[1] < 0 for one in report.classes),
        better=sum(one.interval[0] > 0 for one in report.classes),
        classes_drawn=CLASSES_DRAWN,
        other_facts={
            key: value for key, value in report.certificate.items() if key not in _SAID and value is not None
        },
    )


def _axes(chart: Chart | None) -> dict[str, list[float]] | None:
    """Where the page's script puts the dot: ends of both axes in the SVG, logarithms of costs, and shares."""
    if chart is None:
        return None
    left, right, top, bottom = chart.axes_box
    cheapest, dearest, low, high = chart.limits
    return {"x": [left, right], "y": [bottom, top], "log_cost": [math.log(cheapest), math.log(dearest)],
            "quality": [low / 100, high / 100]}  # fmt: skip


@contextlib.contextmanager
def _new_folder(folder: Path) -> Iterator[None]:
    """Makes the folder before anything is drawn; after an error, removes what it made and is empty."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        with disk_faults(folder):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for path in new:
                path.rmdir()
        raise


def _unwritable(folder: Path, error: OSError) -> DataError:
    return DataError(f"report {folder}", got=str(error), expected="a folder that can be written to")
