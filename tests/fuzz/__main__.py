"""`python -m tests.fuzz READER --minutes N`: documents that nobody would write, until the time is over.

With atheris (`pip install "committee[fuzz]"`) coverage steers what hypothesis draws; without it hypothesis draws
from the corpus alone. A finding is an exception that is no error for a user's eyes; the shortest document of each
kind is kept in `corpus/READER`, where the quick tests read it again. Exit code 1 where there is one.
"""

import argparse
import contextlib
import importlib
import sys

OFFLINE, SERVED = ("plan", "manifest", "timing", "records", "rows", "tables", "parameters"), ("http", "grpc")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzzes one way in.")
    parser.add_argument("reader", choices=(*OFFLINE, *SERVED))
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (default: 10)")
    parser.add_argument("--engine", choices=("atheris", "hypothesis"), help="atheris where it is installed")
    chosen = parser.parse_args()
    atheris = None
    # The server runs in a process of its own, which coverage of this one says nothing of.
    if chosen.reader in OFFLINE and chosen.engine != "hypothesis":
        with contextlib.suppress(ImportError):
            atheris = importlib.import_module("atheris")
    if chosen.engine == "atheris" and atheris is None:
        parser.error("atheris is not installed, or cannot be used with this reader")
    instrumented = contextlib.nullcontext() if atheris is None else atheris.instrument_imports(["orchestrator"])
    with instrumented:
        run = importlib.import_module("tests.fuzz.run")
    return int(run.fuzz(chosen.reader, seconds=chosen.minutes * 60, atheris=atheris))


if __name__ == "__main__":
    sys.exit(main())
