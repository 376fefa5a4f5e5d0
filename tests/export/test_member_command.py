"""`python -m export member` and `show`: what a person types and reads."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from export.__main__ import app, run
from export.member import member_exports
from export.sources import ExportOptions
from orchestrator.errors import CommitteeError, ExportError
from orchestrator.spec import TensorSpec, manifest_from_path


def said(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(words))
    if isinstance(result.exception, CommitteeError):
        return result.exception.exit_code, f"error: {result.exception}"
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("net", "says"),
    [
        ("gives_a_dict", "the network's output: got dict"),
        ("gives_three_axes", "expected one tensor"),
        ("raises", "the network: got RuntimeError: no"),
        ("not_finite", "NaN or infinity on 64 of 64 rows"),
    ],
)
def test_a_network_that_gives_no_scores_is_one_line(tmp_path: Path, net: str, says: str) -> None:
    code, out = said("member", f"torch:tests.export.nets:{net}", "--dims", "3,8,8", "-o", str(tmp_path / "r"))
    assert (code, out.count("\n")) == (2, 0)
    assert says in out
    assert not (tmp_path / "r" / net).exists()


def test_a_head_of_zeros_is_exported_and_logits_are_not_taken_for_probabilities(tmp_path: Path) -> None:
    words = ["--dims", "3,8,8", "-o", str(tmp_path)]
    assert said("member", "torch:tests.export.nets:zeros", *words)[0] == 0
    code, out = said("member", "torch:tests.export.nets:small", *words, "--probabilities")
    assert code == 2
    assert "expected values from 0 to 1 that add up to 1" in out
    assert "gives probabilities" in said("member", "torch:tests.export.nets:soft", *words)[1]


def test_the_command_exports_says_what_it_did_and_shows_it(models: Path, tmp_path: Path) -> None:
    words = ["member", f"hf:{models / 'cheap'}", "-o", str(tmp_path), "--name", "one", "--json"]
    code, out = said(*words)
    assert code == 0, out
    assert json.loads(out)["members"] == {"one": "exported"}
    assert json.loads(said(*words)[1])["members"] == {"one": "up to date"}
    code, out = said("show", "one", "--repository", str(tmp_path))
    assert code == 0
    words = (
        "hf:",
        "MACs per row",
        "centre crop 32x32",
        "parity",
        "ConvNextImageProcessorPil",
        "ONNX Runtime 1.19.2",
    )
    for word in words:
        assert word in out
    assert json.loads(said("show", str(tmp_path / "one"), "--json")[1])["name"] == "one"
    assert "got no manifest" in said("show", "two", "--repository", str(tmp_path))[1]


def test_sources_may_have_names_of_their_own() -> None:
    net, asked = "torch:tests.export.nets:small", ExportOptions(dims=(3, 8, 8))
    plans = member_exports([f"two={net}", net, f"one={net}"], asked)
    assert [plan.name for plan in plans] == ["two", "small", "one"]
    with pytest.raises(ExportError, match="two twice, expected different names; name them: NAME=SOURCE"):
        member_exports([f"two={net}", f"two={net}"], asked)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["torch:tests.export.nets:small", "--dims", "3,x"], "--dims: got 3,x"),
        (["torch:tests.export.nets:small", "--dims", "3,0,8"], "at least 1"),
        (["torch:tests.export.nets:small", "--dims", "3,8,8", "--precision", "fp12"], "--precision: got fp12"),
        (["hf:a", "hf:b", "--name", "x"], "--name: got 2 members"),
        (["torch:tests.export.nets:small", "--dims", "3,8,8", "--name", "no/slash"], "--name: got no/slash"),
        (["torch:tests.export.nets:small", "--dims", "3,8,8", "--name", "line\n"], "--name: got line"),
        (["torch:tests.export.nets:pooled", "--mean", "0,0,0", "--std", "1,0,1", "--resolution", "8"], "above 0"),
        (["torch:tests.export.nets:pooled", "--mean", "0,nan,0", "--std", "1,1,1", "--resolution", "8"], "finite"),
        (["torch:tests.export.nets:small", "torch:tests.export.nets:small", "--dims", "3,8,8"], "small twice"),
    ],
)
def test_wrong_options_are_one_line(words: list[str], says: str, tmp_path: Path) -> None:
    code, out = said("member", *words, "-o", str(tmp_path / "r"))
    assert code == 2
    assert says in out
    assert "Traceback" not in out


def test_a_float_network_is_taken_as_it_is(tmp_path: Path) -> None:
    code, out = said("member", "torch:tests.export.nets:small", "--dims", "3,8,8", "-o", str(tmp_path))
    assert code == 0, out
    manifest = manifest_from_path(tmp_path / "small/manifest.json")
    assert manifest.input == TensorSpec(name="image", dtype="FP32", dims=(3, 8, 8))
    assert manifest.in_graph == {}
    assert manifest.output.dims == (5,)
    # The same network as a file of somebody's, taken in again, and once more behind an image processing by hand.
    file = tmp_path / "small/1/model.onnx"
    assert said("member", f"onnx:{file}", "--name", "again", "-o", str(tmp_path))[0] == 0
    code, out = said(
        "member", f"onnx:{file}", "--name", "bytes", "-o", str(tmp_path), "--mean", "0.5,0.5,0.5", "--std",
        "0.2,0.2,0.2", "--resolution", "8", "--image-px", "12",
    )  # fmt: skip
    assert code == 0, out
    again, seen = (manifest_from_path(tmp_path / name / "manifest.json") for name in ("again", "bytes"))
    assert again.macs == seen.macs == manifest.macs
    assert seen.input.dtype == "UINT8"
    assert seen.input.dims == (3, 12, 12)


def test_run_prints_one_line_and_gives_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["export", "member", "magic:x"])
    assert run() == 2
    assert capsys.readouterr().err.count("\n") == 1
