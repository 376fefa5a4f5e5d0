"""`committee batch` against a fake server, in a folder of its own."""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from orchestrator.__main__ import run
from orchestrator.cli.batch import REFUSED
from tests.cli.digits import fake_server, write_plan
from tests.commands import printed_by
from tests.fakes.kserve import FakeKServe
from tests.fakes.kserve_fronts import GrpcFront

KEYS = np.arange(100) % 30


@dataclass
class Batching:
    """The command against a fake server, in a folder of its own."""

    fake: FakeKServe
    front: GrpcFront
    folder: Path
    capsys: pytest.CaptureFixture[str]

    def batch(
        self,
        source: str,
        output: str = "out.npz",
        *arguments: object,
        code: int = 0,
        model: str = "digits_cascade",
    ) -> str:
        """Runs the command; gives what it printed, to stderr where it failed. Code 7 tells of refused rows."""
        words = ["batch", self.folder / source, self.folder / output, "--model", model]
        words += ["--repository", self.folder / "repository"]
        words += [] if "--url" in arguments else ["--url", self.front.address]
        if code == REFUSED:
            self.capsys.readouterr()
            assert run([*map(str, [*words, *arguments])]) == code, self.capsys.readouterr()
            return self.capsys.readouterr().out
        return printed_by([*words, *arguments], self.capsys, code=code)

    def save(self, name: str = "in.npz", **arrays: Any) -> None:
        np.savez(self.folder / name, **arrays)

    def parquet(self, name: str = "in.parquet", **columns: Any) -> None:
        pq.write_table(pa.table(columns), self.folder / name, row_group_size=17)

    def answers(self, name: str = "out.npz") -> dict[str, list]:
        path = self.folder / name
        if path.suffix == ".parquet":
            return pq.read_table(path).to_pydict()
        with np.load(path) as stored:
            return {key: stored[key].tolist() for key in stored.files}

    def refused(self) -> dict[object, str]:
        """Of the one file of answers that has any."""
        (path,) = self.folder.glob("*.refused.jsonl")
        lines = path.read_text().splitlines()
        return {one["id"]: one["reason"] for one in map(json.loads, lines)}

    def files(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}


@contextmanager
def batching_in(folder: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Batching]:
    """The fake server up, and a repository with its plan in the folder."""
    fake = fake_server(max_batch_size=64)
    write_plan(folder / "repository")
    with GrpcFront(fake) as front:
        yield Batching(fake, front, folder, capsys)


def encoded(key: int, kind: str = "PNG") -> bytes:
    pixels = np.zeros((8, 8), np.uint8)
    pixels[0, 0] = int(np.ceil(key / 16 * 255))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()
