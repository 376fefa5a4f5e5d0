"""`python -m perf readme`: the numbers of README.md and docs/performance.md, written from committed results."""

import io
import json
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from export.commands.console import END, text_with_block
from orchestrator.cli.demo_routes import sentences_from_report, table_from_report
from orchestrator.errors import DataError
from perf.harness.report import interval_text, markdown_table
from perf.studies.reproduce.claims import fewer_macs, fewer_macs_between, points
from perf.studies.reproduce.evaluate import WRITTEN_BY, results_from_path
from perf.studies.reproduce.plans import HEADLINE

BEGIN = "<!-- begin: python -m perf readme -->"
CLAIMS_BEGIN = "<!-- begin: python -m perf readme, claims -->"
SERVED_BEGIN = "<!-- begin: python -m perf readme, served -->"
TARGETS_BEGIN = "<!-- begin: python -m perf readme, targets -->"
_WIDTH = 88
_CLAIMS_WIDTH = 120
# Targets that the README speaks of, and how.
_SERVED = (
    (
        "requests/s against the largest member alone, three CNNs",
        "It answers **{measured:.2f} times** as many requests/s as the last one alone (goal {needed:g}).",
    ),
    (
        "requests/s against the best rival, 16 in flight",
        "It answers {measured:.2f} of the best other form's requests/s with 16 in flight (goal {needed:.2f})",
    ),
    ("requests/s against the best rival, 64 in flight", "and {measured:.2f} with 64 (goal {needed:.2f})."),
    (
        "p50 of easy rows against the best server-side form, 16 in flight",
        "Easy rows wait {measured:.2f} of the time that they wait in the best form within the server, with 16 in "
        "flight (goal {needed:g}).",
    ),
    (
        "p99 of all rows at the same Poisson arrivals, 80 % of the best rival's capacity, against it",
        "At the same arrivals, 80 % of what the best other form can do, the p99 of all rows is {measured:.2f} of "
        "that form's (goal {needed:g}).",
    ),
    (
        "perf leak: growth of resident and shared memory after warm-up, percent",
        "Memory grew by {measured:.1f} % under load (goal: at most {needed:g} %).",
    ),
)
_DEMO = "make it with `committee demo`"
_BENCH = "make it with `python -m perf run --full`"


def block_from_report(report: dict[str, Any]) -> str:
    """The README's block about the demo: table and sentences as the demo prints them."""
    stream = io.StringIO()
    console = Console(file=stream, width=_WIDTH, color_system=None, force_terminal=False)
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
    return _filled(CLAIMS_BEGIN, text)


def _filled(begin: str, text: str) -> str:
    return "\n".join([begin, textwrap.fill(" ".join(text.split()), _CLAIMS_WIDTH, break_on_hyphens=False), END])


def _headline(line: dict[str, Any]) -> str:
    one, other = line["one"], line["other"]
    fast = {size: line["time_factor"][size]["median"] for size in ("32", "1")}
    exits = " / ".join(f"{100 * share:.1f}" for share in one["exit_share"])
    return f"""On {one["n"]:,} test pictures a cascade of {len(one["stages"])} stages takes
        **{fewer_macs(line["macs_factor"])}** (95 % interval {fewer_macs_between(line)}) than the
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
        {fewer_macs(line["macs_factor"])}, at {_difference(line)}."""


def _difference(line: dict[str, Any]) -> str:
    low, high = map(points, line["difference_ci95"])
    return f"{points(line['difference'])} points of accuracy (paired, {low} to {high})"


def block_from_targets(verdicts: list[dict[str, Any]]) -> str:
    """The block of docs/performance.md about targets, from the verdict.json of a bench."""
    rows = []
    for one in verdicts:
        measured = "not measured" if one["measured"] is None else f"{one['measured']:.3g}"
        unknown = "" if one["measured"] is None else "not judged"
        met = {True: "yes", False: "**no**", None: unknown}[one["met"]]
        needed, between = f"{one['needed']:.3g}", interval_text(one.get("interval"))
        rows.append((one["target"], needed, measured, between, met, one.get("note", "")))
    head = ("ratio within one run", "needed", "measured", "95 % interval", "met", "note")
    return "\n".join([TARGETS_BEGIN, *markdown_table(head, rows), END])


def block_from_served(verdicts: list[dict[str, Any]]) -> str:
    """The README's block about serving, in sentences, from the verdict.json of a bench without what it lacks."""
    known = {one["target"].rpartition(" (")[0]: one for one in verdicts}
    said = [
        """Served on two cores: three CNNs of about 0.15, 2 and 12 ms per row, where 15 % of the rows reach the
        last one, held against that one alone and against the best other form of the same cascade: loops and
        concatenated batches in one process and in four, cascades driven by the client, one ONNX graph."""
    ]
    for target, words in _SERVED:
        if known[target]["measured"] is not None:
            said.append(words.format(**known[target]))
    judged = [one["met"] for one in verdicts if one["met"] is not None]
    said.append(
        f"""{judged.count(False)} of {len(judged)} goals that were judged are missed. Measured at the commit that
        perf/RESULTS.md names."""
    )
    return _filled(SERVED_BEGIN, " ".join(said))


def write_blocks(*, readme: Path, performance: Path, report: Path, claims: Path, targets: Path) -> None:
    """Writes all blocks; both files are left alone where one block cannot be made.

    The blocks are made from report.json of a demo, results.json of `python -m perf reproduce` and verdict.json of
    `python -m perf run`.

    Raises:
        DataError: a file is missing or holds something else, or a document cannot be written.
    """
    front, speed = _text_of(readme), _text_of(performance)
    with _other_json(f"report {report}", fix=_DEMO):
        block = block_from_report(_json_from(report, "report", fix=_DEMO))
        front = text_with_block(front, BEGIN, block, subject=readme.name)
    with _other_json(f"results {claims}", fix=WRITTEN_BY):
        block = block_from_claims(results_from_path(claims))
        front = text_with_block(front, CLAIMS_BEGIN, block, subject=readme.name)
    with _other_json(f"verdicts {targets}", fix=_BENCH):
        verdicts = verdicts_from_path(targets)
        speed = text_with_block(speed, TARGETS_BEGIN, block_from_targets(verdicts), subject=performance.name)
        front = text_with_block(front, SERVED_BEGIN, block_from_served(verdicts), subject=readme.name)
    for path, text in ((readme, front), (performance, speed)):
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise DataError(f"document {path}", got=f"a file that cannot be written ({error.strerror})") from error


def verdicts_from_path(path: Path) -> list[dict[str, Any]]:
    """The verdicts of a bench.

    Raises:
        DataError: the file is missing or holds something else.
    """
    verdicts = _json_from(path, "verdicts", fix=_BENCH)
    if not isinstance(verdicts, list) or not verdicts:
        raise DataError(f"verdicts {path}", got="no list of targets", expected="that of a bench", fix=_BENCH)
    return verdicts


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DataError(f"document {path}", got=error, expected="text with the markers of its blocks") from error


def _json_from(path: Path, what: str, *, fix: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{what} {path}", got=str(error), fix=fix) from error


@contextmanager
def _other_json(what: str, *, fix: str) -> Iterator[None]:
    """Turns the errors by which JSON of another shape shows where it is read into one line."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, StopIteration) as error:
        got = f"other JSON ({type(error).__name__}: {error})"
        raise DataError(what, got=got, expected="all that its command writes", fix=fix) from error
