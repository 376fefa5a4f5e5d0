"""docs/text.md: what clients send to a served cascade of text, each block of the page as it stands."""

import contextlib
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from perf.__main__ import app as perf_app
from tests.pages import ROOT, blocks, on_free_ports, run_commands, write_programs
from tests.served.texts import ServedTexts

pytestmark = [pytest.mark.triton, pytest.mark.export, pytest.mark.timeout(120)]
PAGE = (ROOT / "docs" / "text.md").read_text(encoding="utf-8")
CLIENTS = PAGE.split("## Clients")[1].split("\n## ")[0]


def here(text: str, served: ServedTexts) -> str:
    text = text.replace("127.0.0.1:8001", served.server.grpc_address)
    return text.replace("127.0.0.1:8000", served.server.http_address)


def labels_of(served: ServedTexts, *texts: str) -> list[str]:
    """What replay says of texts of the page."""
    return [str(served.answers.label[served.texts.index(text)]) for text in texts]


@pytest.mark.parametrize("place", range(len(blocks(CLIENTS, "python"))))
def test_a_python_client_gets_the_labels(served_texts: ServedTexts, place: int) -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(
            compile(here(blocks(CLIENTS, "python")[place], served_texts), "docs/text.md", "exec"),
            {"__name__": "__main__"},
        )
    texts = list(dict.fromkeys(re.findall('"((?:Fit|Draw) [^"]*)"', blocks(CLIENTS, "python")[place])))
    found = printed.getvalue().split()
    assert found == labels_of(served_texts, *texts) * (len(found) // len(texts)), found
    assert found


def test_curl_sends_texts_as_json(served_texts: ServedTexts) -> None:
    command = here(blocks(CLIENTS)[0], served_texts)
    words = shlex.split(command)
    if shutil.which("curl") is None:
        pytest.skip("the program curl is not installed")
    answer = json.loads(subprocess.check_output(words, timeout=30))
    outputs = {one["name"]: one["data"] for one in answer["outputs"]}
    assert [str(label) for label in outputs["label"]] == labels_of(
        served_texts, "Fit a linear model", "Draw a line"
    )


def test_perf_analyzer_sends_the_rows_of_a_table(
    served_texts: ServedTexts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written, measured = (shlex.split(here(line, served_texts))[3:] for line in blocks(CLIENTS)[1].splitlines())
    rows = tmp_path / "rows.json"
    changed = {
        "build/docstrings/plan.csv": str(served_texts.table),
        "build/text-rows.json": str(rows),
        "text": "body",
    }
    said = CliRunner().invoke(perf_app, [changed.get(word, word) for word in written], catch_exceptions=False)
    assert re.search("239 rows, (29|30)\\.\\d % of them hard", said.stdout), said.stdout
    steps = json.loads(rows.read_text(encoding="utf-8"))["data"]
    assert {text for step in steps for text in step["text"]} <= set(served_texts.texts)
    # Shorter, and whatever the machine does meanwhile is called stable.
    quick = {str(rows): str(rows), "2000": "500", "50": "99999", "6": "3", **changed}
    words = [sys.executable, "-m", "perf", *(quick.get(word, word) for word in measured)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert float(re.search(r"Throughput: ([\d.]+) infer/sec", done.stdout)[1]) > 0


@pytest.mark.slow  # thousands of rows are recorded: minutes
@pytest.mark.timeout(600)
def test_every_command_from_a_table_to_answers_runs(tmp_path: Path) -> None:
    import pyarrow.parquet

    write_programs(tmp_path)
    (tmp_path / "perf").mkdir()
    (tmp_path / "perf/text").symlink_to(ROOT / "perf/text")
    steps = PAGE.split("## A cascade of text")[1].split("## Clients")[0]
    commands = "\n".join(blocks(steps)).splitlines()
    run_commands(tmp_path, ["set -euo pipefail", *on_free_ports(commands)], timeout_s=560)
    answers = pyarrow.parquet.read_table(tmp_path / "build/text-answers.parquet")
    assert len(answers) > 5000
    assert "text" in answers.schema.names
