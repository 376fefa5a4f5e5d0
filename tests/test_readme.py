"""The README against what is really there: commands, links, and every printed number."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from orchestrator.decision import PARAMETERS
from orchestrator.spec import cascade_from_path
from perf.readme import BEGIN, END, block_from_claims, block_from_report, block_from_targets, verdicts_from_path
from perf.studies.reproduce.evaluate import results_from_path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
REPORT = json.loads((ROOT / "docs/demo/report.json").read_text(encoding="utf-8"))


DOCS = {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}


def commands() -> list[str]:
    blocks = [block for text in (README, *DOCS.values()) for block in re.findall(r"```bash\n(.*?)```", text, re.S)]
    return [line.split("#")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def test_the_table_is_the_committed_report_to_the_letter() -> None:
    assert block_from_report(REPORT) in README


def test_the_headline_is_that_of_the_committed_results_to_the_letter() -> None:
    results = results_from_path(ROOT / "docs" / "reproduce" / "results.json")
    assert block_from_claims(results) in README


def test_the_speed_targets_are_those_of_the_committed_bench_to_the_letter() -> None:
    verdicts = verdicts_from_path(ROOT / "perf" / "verdict.json")
    assert block_from_targets(verdicts) in (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    results = (ROOT / "perf" / "RESULTS.md").read_text(encoding="utf-8")
    for one in verdicts:
        # Both come from one run, or one of them was written by hand.
        words = one["target"].rpartition(" (")[0]
        row = next(line for line in results.splitlines() if line.startswith(f"| {words} |"))
        assert row.split(" | ")[4] == {True: "yes", False: "**no**", None: "not measured"}[one["met"]]


def test_the_one_command_and_its_table_come_within_the_first_30_lines() -> None:
    lines = README.splitlines()
    assert "make demo" in lines[:12]
    assert lines.index(BEGIN) < 20
    assert lines.index(END) < 30


@pytest.mark.parametrize("target", sorted({c.split()[1] for c in commands() if c.startswith("make ")}))
def test_every_make_target_exists(target: str) -> None:
    assert re.search(rf"^{target}:.*## ", (ROOT / "Makefile").read_text(), re.M)


def program_of(command: str) -> str | None:
    """The package whose program a command runs; None for make, docker and others."""
    words = command.split()
    if words[0].rpartition("/")[2] == "committee":
        return "orchestrator"
    python = words[0].rpartition("/")[2].startswith("python")
    return words[words.index("-m") + 1] if python and "-m" in words else None


OURS = ("orchestrator", "export", "perf")
PROGRAM_COMMANDS = [command for command in commands() if program_of(command) in OURS]


def options_of(program: str, name: str) -> set[str]:
    """Every option of a command, asked of the program itself: starting a process for each line takes a minute."""
    if program == "orchestrator":
        single = typer.Typer(add_completion=False)
        single.command(name)(getattr(importlib.import_module(f"orchestrator.cli.{name}"), name))
        found = typer.main.get_command(single)
    else:
        app = importlib.import_module(f"{program}.__main__").app
        found = typer.main.get_command(app).commands[name]
    return {option for parameter in found.params for option in (*parameter.opts, *parameter.secondary_opts)}


@pytest.mark.parametrize("command", PROGRAM_COMMANDS)
def test_every_command_and_option_exists(command: str) -> None:
    words = command.removesuffix("&").split()
    program = program_of(command)
    name = words[words.index(program) + 1] if "-m" in words else words[1]
    if name in ("analyzer", "tritonserver"):
        # What follows is the other program's; a test of its own runs it.
        words = words[: words.index(name) + 1]
    assert {word for word in words[2:] if word.startswith("-") and word != "-m"} <= options_of(program, name)


def test_the_exporter_runs_from_the_checkout_as_a_process_of_its_own() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "export", "--help"],
        capture_output=True, text=True, cwd=ROOT, timeout=60, check=False, env={"COLUMNS": "200", "PATH": ""},
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr


@pytest.mark.parametrize(
    ("page", "link"),
    [(page, link) for page, text in DOCS.items() for link in re.findall(r"\]\((?!http)([^)#]+)\)", text)],
)
def test_every_link_of_the_docs_leads_somewhere(page: Path, link: str) -> None:
    assert (page.parent / link).exists()


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)#]+)\)", README))
def test_every_link_leads_somewhere(link: str) -> None:
    assert (ROOT / link).exists()


def test_the_tables_of_parameters_and_tensors_are_complete() -> None:
    interface = DOCS[ROOT / "docs" / "serving.md"]
    for name in PARAMETERS:
        assert f"`{name}`" in interface
    spec = cascade_from_path(ROOT / "model_repository/digits_cascade/1/cascade.json")
    assert f"`{spec.input.name}` (in) | {spec.input.dtype}" in interface
    config = (ROOT / "model_repository/digits_cascade/config.pbtxt").read_text()
    for name in re.findall(r'name: "([a-z_]+)"', config.split("output {", 1)[1].split("instance_group")[0]):
        assert f"`{name}`" in interface


def test_the_committed_report_keeps_what_the_demo_promises() -> None:
    routes = {route["name"]: route for route in REPORT["routes"]}
    members = [route for route in routes.values() if route["kind"] == "member"]
    cascade = routes["digits_cascade"]
    assert REPORT["replay_mismatches"] == 0
    assert cascade["mean_mmacs"] <= max(route["mean_mmacs"] for route in members) / 4
    assert cascade["accuracy"] >= max(route["accuracy"] for route in members) - 0.005
