"""Writes the demo's table into README.md from the committed report, so that no number is typed by hand."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from orchestrator.cli.demo_report import sentences_from_report, table_from_report
from orchestrator.errors import DataError

BEGIN = "<!-- begin: python -m perf readme -->"
END = "<!-- end -->"
WIDTH = 88


def block_from_report(report: dict[str, Any]) -> str:
    """The README's block: the table and its sentences as the demo prints them."""
    stream = io.StringIO()
    console = Console(file=stream, width=WIDTH, color_system=None, force_terminal=False)
    console.print(table_from_report(report))
    lines = [line.rstrip() for line in stream.getvalue().splitlines()]
    text = "\n".join(line for line in lines if line)
    return "\n".join([BEGIN, "```text", text, *sentences_from_report(report), "```", END])


def readme_with_report(readme: str, report: dict[str, Any]) -> str:
    """The README's text with its block replaced.

    Raises:
        DataError: the README has lost its markers.
    """
    head, begin, rest = readme.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise DataError("README.md", got="no markers", expected=f"{BEGIN} and {END}")
    return head + block_from_report(report) + tail


def report_from_path(path: Path) -> dict[str, Any]:
    """The report of a demo run.

    Raises:
        DataError: the file is missing or is not JSON.
    """
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"report {path}", got=str(error), fix="make it with `committee demo`") from error
    return report
