"""`python -m export tokenizer` and `image-decoder`: what a person types and reads."""

import json
import shutil
from pathlib import Path

import pytest

from orchestrator.repository.check import check
from orchestrator.spec.deriving import deriving_from_path
from tests.export.deriving.builders import MAX_LENGTH, save_tokenizer
from tests.export.test_member_command import said

ROOT = Path(__file__).parents[3]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "model_repository" / "digits_small", tmp_path / "repository" / "digits_small")
    return tmp_path / "repository"


def test_a_tokenizer_is_exported_once_and_shown(repository: Path, tmp_path: Path) -> None:
    words = ["tokenizer", save_tokenizer(tmp_path / "Tiny Bert", "bert"), "-o", str(repository)]
    code, out = said(*words)
    assert code == 0, out
    assert f"up to {MAX_LENGTH} tokens, longer texts are cut; needs tokenizers " in out
    code, out = said(*words, "--json")
    done = json.loads(out)
    assert (done["model"], done["done"]) == ("tokenizer_tiny_bert", "up to date")
    assert done["derived"]["outputs"][0] == {"name": "input_ids", "dtype": "INT64", "dims": [-1], "pad": 0}
    assert said(*words, "--over-length", "refuse")[0] == 0
    assert "over_length refuse" in " ".join(
        said("show", "tokenizer_tiny_bert", "--repository", str(repository))[1].split()
    )
    shown = said("show", "tokenizer_tiny_bert", "--repository", str(repository), "--json")[1]
    assert json.loads(shown)["derives"] == "tokens"
    assert not check(repository).faults


def test_a_decoder_makes_the_rows_of_a_member(repository: Path) -> None:
    code, out = said("image-decoder", "--like", "digits_small", "-o", str(repository))
    assert code == 0, out
    assert "encoded STRING [1] -> image FP32 [1, 8, 8]" in out
    options = deriving_from_path(repository / "image_decoder" / "manifest.json").options
    assert options["preprocess"]["value_max"] == 16
    assert not check(repository).faults


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["tokenizer", "onnx:model.onnx"], "source onnx:model.onnx: got no hf:, expected hf:<hub id or folder>"),
        (["tokenizer", "hf:./nothing"], "got no such folder, expected a folder with tokenizer.json, or a hub id"),
        (["tokenizer", "hf:{bert}", "--over-length", "cut"], "got cut, expected truncate or refuse"),
        (["tokenizer", "hf:{bert}", "--empty", "yes"], "got yes, expected refuse or keep"),
        (["tokenizer", "hf:{bert}", "--padding-side", "both"], "got both, expected right or left"),
        (["tokenizer", "hf:{bert}", "--name", "digits_small"], "got another model called digits_small"),
        (["tokenizer", "hf:{bert}", "--name", "a/b"], "expected letters, digits"),
        (["image-decoder"], "got neither"),
        (["image-decoder", "--like", "digits_small", "--height", "8"], "expected one of them"),
        (["image-decoder", "--like", "digits_small", "--mode", "L"], "expected those of the member alone"),
        (["image-decoder", "--like", "nothing"], "got no such model, expected one of digits_small"),
        (["image-decoder", "--height", "8", "--mode", "CMYK"], "got CMYK, expected RGB or L"),
    ],
)
def test_what_cannot_be_done_is_one_line(repository: Path, tmp_path: Path, words: list[str], says: str) -> None:
    if "hf:{bert}" in words:
        save_tokenizer(tmp_path / "bert", "bert")
    code, out = said(*(word.format(bert=tmp_path / "bert") for word in words), "-o", str(repository))
    assert (code, out.count("\n")) == (2, 0)
    assert says in out
    assert [path.name for path in repository.iterdir()] == ["digits_small"]
