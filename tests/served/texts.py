"""The committed members of text behind one server: cascades of text, of token ids, and with a strict tokenizer."""

import csv
import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import transformers
import typer

from export.__main__ import app
from orchestrator.__main__ import run
from orchestrator.decision import AnsweredRows
from orchestrator.planner.records import Records, records_from_path
from orchestrator.planner.replay import replay
from orchestrator.repository.render import render
from orchestrator.serving.process import EmbeddedServer
from orchestrator.spec import CascadeSpec, InputSpec, cascade_from_path
from orchestrator.spec.cascade import PLAN
from perf.load.checked import RIGHT, KnownRows

COMMITTED = Path(__file__).parents[2] / "perf" / "text"
LINEAR, TINY, LARGE = MEMBERS = ("docstrings_linear", "docstrings_tiny", "docstrings_large")
TOKENIZER, STRICT_TOKENIZER = "tokenizer_docstrings", "strict_tokenizer"
# Text alone; token ids alone; text that a tokenizer refuses at stage 0 where it is long.
TEXT, TOKENS, STRICT = "docstrings", "docstrings_of_tokens", "docstrings_strict"
ROWS = 240
ON_THE_PAGE = ("Fit a linear model", "Draw a line")
# Tokens of a text: the strict tokenizer refuses more than the one, its cascade more than the other.
MOST_TOKENS, LAST_BUCKET = 16, 12


def paragraphs() -> list[str]:
    """Real texts of 1 to 96 tokens that need no download: paragraphs of the docstrings of numpy."""
    docs = [getattr(np, name).__doc__ or "" for name in sorted(np.__all__)]
    found = dict.fromkeys(" ".join(part.split()) for doc in docs for part in doc.split("\n\n"))
    some = [text for text in found if text][:: max(1, len(found) // ROWS)]
    return [*ON_THE_PAGE, *some][:ROWS]


@dataclass(frozen=True, kw_only=True)
class ServedTexts:
    """A running server and what its cascades have to answer."""

    server: EmbeddedServer
    repository: Path
    table: Path  # .csv with the texts in the column body
    texts: list[str]
    records: Records

    def spec(self, name: str) -> CascadeSpec:
        return cascade_from_path(self.repository / name / "1" / PLAN)

    @cached_property
    def known(self) -> KnownRows:
        """Every text with what replay says of it."""
        return KnownRows(self.rows(*range(len(self.texts))), self.records, [self.spec(TEXT)])

    @cached_property
    def answers(self) -> AnsweredRows:
        """What replay says of every text."""
        return replay(self.spec(TEXT), self.records)

    @cached_property
    def sure(self) -> np.ndarray:
        """Places of the texts whose exits rounding cannot change."""
        return np.sort(np.concatenate(self.known.by_stage))

    def assert_right(self, places: Sequence[int], outputs: Mapping[str, np.ndarray]) -> None:
        """Served answers about some texts are those of replay."""
        assert self.known.outcome(np.array(places, np.intp), outputs) == RIGHT, outputs

    def rows(self, *places: int) -> np.ndarray:
        """Texts as a client sends them, (n, 1)."""
        return np.array([[self.texts[place].encode()] for place in places], object)


def committee(*words: object) -> None:
    """Runs a command line that must not fail."""
    code = run([*map(str, words)])
    assert code == 0, words


def export(*words: object) -> None:
    """Runs one of `python -m export`."""
    typer.main.get_command(app).main([*map(str, words)], standalone_mode=False)


def write_tokenizer_source(folder: Path) -> None:
    """The committed tokenizer as transformers stores one."""
    file = COMMITTED / "model_repository" / TOKENIZER / "1" / "tokenizer.json"
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    transformers.PreTrainedTokenizerFast(tokenizer_file=str(file), **special).save_pretrained(folder)


def build(folder: Path) -> tuple[Path, Path, list[str], Records]:
    """Writes the repository by the commands of docs/text.md."""
    repository, table = folder / "repository", folder / "texts.csv"
    shutil.copytree(COMMITTED / "model_repository", repository)
    write_tokenizer_source(folder / "source")
    export(
        "tokenizer", f"hf:{folder / 'source'}", "--name", STRICT_TOKENIZER, "-o", repository,
        "--over-length", "refuse", "--max-length", MOST_TOKENS, "--max-bytes", 10_000,
    )  # fmt: skip
    texts = paragraphs()
    with table.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(["id", "body"])
        lines.writerows(enumerate(texts))
    where = ["--repository", repository]
    records = folder / "records.npz"
    committee("record", *MEMBERS, "--data", table, "--text", "body", "--derive", TOKENIZER, *where, "-o", records)
    planned = ["--impose-exits", "0.5,0.3"]
    committee("plan", records, *planned, "--name", TEXT, *where, "-o", folder / "plan.json")
    committee("render", folder / "plan.json", *where)
    spec = cascade_from_path(folder / "plan.json")
    for other in (of_tokens(spec), strict(spec)):
        render(other, repository)
    return repository, table, texts, records_from_path(records)


def of_tokens(spec: CascadeSpec) -> CascadeSpec:
    """Its members that read token ids, which requests bring."""
    (tokens,) = spec.derived
    inputs = tuple(
        InputSpec(name=one.name, dtype=one.dtype, dims=one.dims, pad=one.pad, buckets=(32, 96))
        for one in tokens.outputs
    )
    return dataclasses.replace(spec, name=TOKENS, inputs=inputs, derived=(), stages=spec.stages[1:])


def strict(spec: CascadeSpec) -> CascadeSpec:
    """The same with texts, whose tokens the strict tokenizer makes; the last bucket is shorter than its limit."""
    (tokens,) = spec.derived
    outputs = tuple(dataclasses.replace(one, buckets=(8, LAST_BUCKET)) for one in tokens.outputs)
    derived = dataclasses.replace(tokens, name=STRICT_TOKENIZER, outputs=outputs, sha256=None)
    return dataclasses.replace(spec, name=STRICT, derived=(derived,), stages=spec.stages[1:])
