"""`python -m tests.faults`: every row of the fault matrix on the served product; exit code 1 where one fails.

`--only NAME ...` runs some of them, `--write docs/reliability.md` writes the page, which needs all of them.
"""

import argparse
import datetime
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

from orchestrator.commandline import interrupt_on_signals
from perf.harness.machine import commit_here, cpu_name
from perf.harness.report import markdown_table
from perf.load.checked import OUTCOMES
from tests.faults.frame import LIMIT_S, WHOLE_S, Bench, FaultResult
from tests.faults.matrix import ROWS

_HEAD = ("what is done", "sent", *OUTCOMES, "errors", "seconds until whole", "as promised")
_PAGE = Path(__file__).with_name("page.md")


def _cells(result: FaultResult) -> list[str]:
    counts = dict(result.counts)
    sent = sum(counts.values())
    known = [str(counts.pop(name)) for name in OUTCOMES]
    errors = ", ".join(f"{code} {count}" for code, count in counts.items()) or "none"
    whole = "never" if result.whole_s is None else f"{result.whole_s:.1f}"
    return [result.row.says, f"{sent}", *known, errors, whole, "**no**" if result.faults else "yes"]


def page_from_results(results: Sequence[FaultResult], *, triton: str) -> str:
    """docs/reliability.md."""
    failed = [one for one in results if one.faults]
    failing = ["", "## Rows that fail", ""] if failed else [""]
    failing += [f"- {one.row.says} (`{one.row.name}`): {'; '.join(one.faults)}" for one in failed]
    return _PAGE.read_text().format(
        date=datetime.datetime.now(datetime.timezone.utc).date(),
        commit=commit_here(),
        triton=triton,
        python=platform.python_version(),
        cpu=cpu_name(),
        met=len(results) - len(failed),
        all=len(results),
        limit=LIMIT_S,
        whole=WHOLE_S,
        table="\n".join(markdown_table(_HEAD, map(_cells, results))),
        failing="\n".join([*failing, ""] if failed else failing),
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="Faults on the served product.")
    names = [row.name for row in ROWS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"some of: {', '.join(names)}")
    parser.add_argument("--write", type=Path, metavar="PATH", help="write the page, with all rows")
    chosen = parser.parse_args()
    if chosen.only and chosen.write:
        parser.error("--write needs all rows, so it cannot go with --only")
    results = []
    with Bench() as bench:
        for row in ROWS:
            if not chosen.only or row.name in chosen.only:
                results.append(result := bench.run(row))
                words = "; ".join(result.faults) or "as promised"
                whole = "never" if result.whole_s is None else f"{result.whole_s:.1f} s"
                sys.stdout.write(f"{row.name:<28} {result.counts} whole: {whole}; {words}\n")
                sys.stdout.flush()
        if chosen.write:
            chosen.write.write_text(page_from_results(results, triton=bench.triton_version))
    return int(any(one.faults for one in results))


if __name__ == "__main__":
    # Servers end, whichever signal it is.
    interrupt_on_signals()
    sys.exit(main())
