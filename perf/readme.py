"""Writes the README's numbers from committed results, so that none is typed by hand."""

from __future__ import annotations

import io
import json
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from export.commands.console import END, text_with_block
from orchestrator.cli.demo import sentences_from_report, table_from_report
from orchestrator.errors import DataError
from orchestrator.report.words import times_between, times_words
from perf.studies.reproduce.choices import HEADLINE
from perf.studies.reproduce.results import WRITTEN_BY, results_from_path

BEGIN = "<!-- begin: python -m perf readme -->"
CLAIMS_BEGIN = "<!-- begin: python -m perf readme, claims -->"
TARGETS_BEGIN = "<!-- begin: python -m perf readme, targets -->"
WIDTH = 88
CLAIMS_WIDTH = 120
_DEMO = "make it with `committee demo`"
_BENCH = "make it with `python -m perf run --full`"


def block_from_report(report: dict[str, Any]) -> str:
    """The README's block: the table and its sentences as the demo prints them."""
    stream = io.StringIO()
    console = Console(file=stream, width=WIDTH, color_system=None, force_terminal=False)
    console.print(table_from_report(report))
    lines = [line.rstrip() for line in stream.getvalue().splitlines()]
    text = "\n".join(line for line in lines if line)
    return "\n".join([BEGIN, "```text", text, *sentences_from_report(report), "```", END])


def block_from_claims(results: dict[str, Any]) -> str:
    """The README's block about the paper's claims, from the results of `python -m perf reproduce`."""
    headline = results["claims"][HEADLINE][0]
    text = _headline(headline) if headline["one"] is not None else _no_headline(headline)
    if results["against_test_best"] is not None:
        text += _beside_test_best(headline, results["against_test_best"])
    return "\n".join(
        [CLAIMS_BEGIN, textwrap.fill(" ".join(text.split()), CLAIMS_WIDTH, break_on_hyphens=False), END]
    )


def _headline(line: dict[str, Any]) -> str:
    one, other = line["one"], line["other"]
    fewer, between = _fewer(line)
    fast = {size: line["time_factor"][size]["median"] for size in ("32", "1")}
    exits = " / ".join(f"{100 * share:.1f}" for share in one["exit_share"])
    return f"""On {one["n"]:,} test pictures a cascade of {len(one["stages"])} stages takes
        **{fewer}** (95 % interval {between}) than the
        single model that is most accurate on the pictures plans are chosen on
        ({other["mean_cost"] / 1e6:.1f} million), at {_difference(line)}.
        Measured in ONNX Runtime it is {fast["32"]:.2f} times as fast in batches of 32
        and {fast["1"]:.2f} times in batches of 1. Its stages answer {exits} % of the rows."""


def _no_headline(line: dict[str, Any]) -> str:
    return f"""On {line["other"]["n"]:,} test pictures there is no headline: {line["note"]}, against the
        single model that is most accurate on the pictures plans are chosen on
        ({line["other"]["mean_cost"] / 1e6:.1f} million MACs)."""


def _beside_test_best(headline: dict[str, Any], line: dict[str, Any]) -> str:
    if line["other"]["stages"] == headline["other"]["stages"]:
        return " That single model is the most accurate one on the test pictures too."
    return f""" Against the single model that turns out most accurate on the test pictures themselves it takes
        {_fewer(line)[0]}, at {_difference(line)}."""


def _fewer(line: dict[str, Any]) -> tuple[str, str]:
    """How many times fewer MACs, or more, and the interval."""
    factor, interval = line["macs_factor"], line["macs_factor_ci95"]
    return (
        times_words(factor, noun="MACs", form=".2f"),
        times_between(interval, factor, noun="MACs", form=".2f"),
    )


def _difference(line: dict[str, Any]) -> str:
    low, high = (100 * value for value in line["difference_ci95"])
    return f"{100 * line['difference']:+.2f} points of accuracy (paired, {low:+.2f} to {high:+.2f})"


def readme_with_report(readme: str, report: dict[str, Any]) -> str:
    """The README's text with the demo's block replaced.

    Raises:
        DataError: the README has lost its markers.
    """
    return _replaced(readme, BEGIN, block_from_report(report))


def readme_with_claims(readme: str, results: dict[str, Any]) -> str:
    """The README's text with the block about the paper's claims replaced.

    Raises:
        DataError: the README has lost its markers.
    """
    return _replaced(readme, CLAIMS_BEGIN, block_from_claims(results))


def _replaced(readme: str, first: str, block: str) -> str:
    return text_with_block(readme, first, block, subject="README.md")


def block_from_targets(verdicts: list[dict[str, Any]]) -> str:
    """The README's block about speed, from the verdict.json of a bench."""
    lines = ["| ratio within one run | needed | measured | met | note |", "|---|---|---|---|---|"]
    for one in verdicts:
        measured = "not measured" if one["measured"] is None else f"{one['measured']:.3g}"
        unknown = "" if one["measured"] is None else "not judged"
        met = {True: "yes", False: "**no**", None: unknown}[one["met"]]
        lines.append(f"| {one['target']} | {one['needed']:g} | {measured} | {met} | {one.get('note', '')} |")
    return "\n".join([TARGETS_BEGIN, *lines, END])


def readme_with_targets(text: str, verdicts: list[dict[str, Any]]) -> str:
    """The README with the block about speed replaced; arguments as for `readme_with_report`."""
    return _replaced(text, TARGETS_BEGIN, block_from_targets(verdicts))


def verdicts_from_path(path: Path) -> list[dict[str, Any]]:
    """The verdicts of a bench.

    Raises:
        DataError: the file is missing or holds something else.
    """
    try:
        verdicts: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"verdicts {path}", got=str(error), fix=_BENCH) from error
    if not isinstance(verdicts, list) or not verdicts:
        raise DataError(f"verdicts {path}", got="no list of targets", expected="that of a bench", fix=_BENCH)
    return verdicts


def report_from_path(path: Path) -> dict[str, Any]:
    """The report of a demo run.

    Raises:
        DataError: the file is missing or holds something else.
    """
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"report {path}", got=str(error), fix=_DEMO) from error
    return report


def write_readme(path: Path, *, report: Path, claims: Path, targets: Path) -> None:
    """Puts all blocks into a README; it is left alone where one of them cannot be made.

    Args:
        path: of the README.
        report: report.json of a demo run.
        claims: results.json of `python -m perf reproduce`.
        targets: verdict.json of `python -m perf run`.

    Raises:
        DataError: a file is missing or holds something else, or the README cannot be written.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DataError(f"README {path}", got=error, expected=f"text with {BEGIN} and {END}") from error
    with _holding(f"report {report}", fix=_DEMO):
        text = readme_with_report(text, report_from_path(report))
    with _holding(f"results {claims}", fix=WRITTEN_BY):
        text = readme_with_claims(text, results_from_path(claims))
    with _holding(f"verdicts {targets}", fix=_BENCH):
        text = readme_with_targets(text, verdicts_from_path(targets))
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(f"README {path}", got=f"a file that cannot be written ({error.strerror})") from error


@contextmanager
def _holding(what: str, *, fix: str) -> Iterator[None]:
    """JSON of another shape shows where it is read: a missing key, or a value of another kind."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, StopIteration) as error:
        got = f"other JSON ({type(error).__name__}: {error})"
        raise DataError(what, got=got, expected="all that its command writes", fix=fix) from error
