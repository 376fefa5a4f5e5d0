"""Writes the README's numbers from committed results, so that none is typed by hand."""

from __future__ import annotations

import io
import json
import textwrap
from pathlib import Path
from typing import Any

from rich.console import Console

from orchestrator.cli.demo_report import sentences_from_report, table_from_report
from orchestrator.errors import DataError

BEGIN = "<!-- begin: python -m perf readme -->"
CLAIMS_BEGIN = "<!-- begin: python -m perf readme, claims -->"
END = "<!-- end -->"
WIDTH = 88
CLAIMS_WIDTH = 120


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
    headline = results["claims"]["headline"][0]
    one, other = headline["one"], headline["other"]
    low, high = headline["macs_factor_ci95"]
    less, more = (100 * value for value in headline["difference_ci95"])
    fast = {size: headline["time_factor"][size]["median"] for size in ("32", "1")}
    exits = " / ".join(f"{100 * share:.1f}" for share in one["exit_share"])
    text = f"""On {one["n"]:,} test pictures a cascade of {len(one["stages"])} stages takes
        **{headline["macs_factor"]:.2f} times fewer MACs** (95 % interval {low:.2f} to {high:.2f}) than the most
        accurate single model ({other["mean_cost"] / 1e6:.1f} million),
        at {100 * headline["difference"]:+.2f} points of accuracy (paired, {less:+.2f} to {more:+.2f}).
        Measured in ONNX Runtime it is {fast["32"]:.2f} times as fast in batches of 32
        and {fast["1"]:.2f} times in batches of 1. Its stages answer {exits} % of the rows."""
    return "\n".join(
        [CLAIMS_BEGIN, textwrap.fill(" ".join(text.split()), CLAIMS_WIDTH, break_on_hyphens=False), END]
    )


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
    head, begin, rest = readme.partition(first)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise DataError("README.md", got="no markers", expected=f"{first} and {END}")
    return head + block + tail


def report_from_path(path: Path) -> dict[str, Any]:
    """The report of a demo run, or the results of reproducing the claims.

    Raises:
        DataError: the file is missing or is not JSON.
    """
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"report {path}", got=str(error), fix="make it with `committee demo`, or `python -m perf reproduce`"
        ) from error
    return report
