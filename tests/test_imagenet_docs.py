"""docs/imagenet.md: its commands run as they stand, on a few pictures and small stand-ins for the models."""

import json
import re
import shlex
import socket
import sys
from pathlib import Path

import pytest

from tests.pages import blocks, run_commands, write_programs

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/imagenet.md").read_text(encoding="utf-8")
STEPS, OTHERS = PAGE.split("## Other families")
# The only lines a reader is told to change.
VARIABLES = ("VAL", "CLASSES", "WORK", "EPSILON", "REQUESTS", "HTTP", "GRPC", "MEMBERS")


def assigned(block: str) -> list[str]:
    return re.findall(r"^([A-Z]+)=", block, re.M)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Reader:
    """Somebody in a folder with ImageNet, the hub's models and the checkout's programs."""

    def __init__(self, folder: Path) -> None:
        from tests.imagenet_stand_ins import write_class_map, write_pictures

        self.folder = folder
        self.left_out = "$^"  # of the commands: nothing
        # Thirty a class: enough to certify something, few enough to take seconds.
        write_pictures(folder / "data/val", each=30)
        write_pictures(folder / "data/train", each=20, seed=1)
        write_class_map(folder / "data/map.txt")
        self.changes = {
            "VAL": "data/val", "CLASSES": "data/map.txt", "EPSILON": "0.25", "REQUESTS": "40",
            "HTTP": str(free_port()), "GRPC": str(free_port()),
        }  # fmt: skip
        write_programs(folder)
        # For a machine without curl; PATH has the real one first.
        (folder / "bin").mkdir()
        (folder / "bin/curl").write_text(
            f"#!/bin/sh\nfor url; do :; done\nexec {shlex.quote(sys.executable)} -c "
            "'import sys, urllib.request; urllib.request.urlopen(sys.argv[1])' \"$url\" 2>/dev/null\n"
        )
        (folder / "bin/curl").chmod(0o755)

    def run(self, commands: list[str], *, timeout_s: float) -> str:
        """Runs the page's first block with the changes, then the commands; gives what they and bash print."""
        lines = [re.sub(r"^([A-Z]+)=\S+", self._changed, line) for line in blocks(PAGE)[0].splitlines()]
        script = [re.sub(self.left_out, "", line) for line in ("set -euo pipefail", *lines, "set -v", *commands)]
        return run_commands(self.folder, script, timeout_s=timeout_s, path=f":{self.folder / 'bin'}")

    def _changed(self, line: re.Match[str]) -> str:
        name = line[1]
        return f"{name}={self.changes[name]}" if name in self.changes else line[0]


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    return Reader(tmp_path)


def test_only_the_first_block_holds_what_a_reader_changes() -> None:
    assert tuple(assigned(blocks(PAGE)[0])) == VARIABLES
    assert [name for block in blocks(PAGE)[1:] for name in assigned(block)] == ["SERVER", "PICTURES"]
    used = set(re.findall(r"\$\{?([A-Z]+)", "".join(blocks(PAGE))))
    assert used == {*VARIABLES, "SERVER", "PICTURES"}


@pytest.mark.export
@pytest.mark.triton
@pytest.mark.timeout(400)
@pytest.mark.parametrize("left_out", ["12456", pytest.param("", marks=pytest.mark.slow)])
def test_every_step_runs_from_the_weights_to_the_load_test(reader: Reader, left_out: str) -> None:
    from tests.imagenet_stand_ins import LABELS, hub_ids, save_efficientnet

    # Each model takes seconds, and three go all the ways that eight do.
    if left_out:
        reader.left_out = rf" hf:google/efficientnet-b[{left_out}]|efficientnet_b[{left_out}],"
    names = hub_ids(re.sub(reader.left_out, "", "".join(blocks(STEPS))))
    assert len(names) == 8 - len(left_out)
    for name in names:
        size = int(name[-1])
        save_efficientnet(
            reader.folder / name,
            side_px=16 + 2 * size,
            width=4 + 2 * size,
            pictures=reader.folder / "data/train",
        )
    shown = reader.run(blocks(STEPS)[1:], timeout_s=360)
    work = reader.folder / "build/imagenet"
    assert "note" not in shown.replace("notes", "")
    plan = json.loads((work / "imagenet.json").read_text())
    assert plan["labels"] == list(LABELS.values())
    assert "guarantee" in plan["fit"]["extra"]
    assert (work / "report/index.html").is_file()
    assert json.loads((work / "load/results.json").read_text())["cells"][0]["route"] == "imagenet"


@pytest.mark.export
@pytest.mark.slow  # most of a minute, and what it runs has faster tests of its own
@pytest.mark.timeout(300)
def test_other_families_are_exported_and_recorded(reader: Reader) -> None:
    from tests.imagenet_stand_ins import hub_ids, save_resnet, save_vit

    for place, name in enumerate(hub_ids("".join(blocks(OTHERS)))):
        save = save_vit if "vit" in name else save_resnet
        save(reader.folder / name, side_px=24 + 8 * (place % 2))
    reader.run(blocks(OTHERS), timeout_s=280)
