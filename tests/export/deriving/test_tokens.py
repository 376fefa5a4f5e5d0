"""A tokenizer's model gives the tokens that transformers gives; a text it cannot take fails its request alone."""

import functools
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from export.deriving.served.tokens import RowTokens, TextError
from export.deriving.tokenizer import TEXTS, tokenizer_model
from export.deriving.writing import write_deriving
from orchestrator.errors import ExportError, RepositoryError, SpecError
from orchestrator.predictor.deriving import local_deriver
from orchestrator.repository.check import check
from orchestrator.repository.derive import derived_spec
from orchestrator.rows.blocks import RowBlock
from orchestrator.spec import CascadeSpec, InputSpec, Member, Stage, manifest_from_path
from orchestrator.spec.deriving import deriving_from_path
from tests.export.deriving.builders import MAX_LENGTH, SHAPES, save_tokenizer
from tests.fakes.triton import FakeTriton, InferenceResponse, Request, TritonError, TritonModelError

PAIRS = ("bert", "roberta")
ALIVE = "some words of a plain sentence"
TEXT = st.text(max_size=80) | st.lists(
    st.sampled_from(["the", "array", "Returns", "<user>", "[SEP]", "</s>", "don't", "  ", "\n", "é", "日本"]),
    max_size=40,
).map(" ".join)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizers")
    for shape in SHAPES:
        model = tokenizer_model(save_tokenizer(folder / "sources" / shape, shape), empty="keep")
        write_deriving(folder / "repository", model, force=False)
    for shape in PAIRS:
        model = tokenizer_model(f"hf:{folder / 'sources' / shape}", pair=True, empty="keep")
        write_deriving(folder / "repository", model, force=False)
    return folder / "repository"


def tokens_of(repository: Path, shape: str, **changed: Any) -> RowTokens:
    manifest = deriving_from_path(repository / f"tokenizer_{shape}" / "manifest.json")
    return RowTokens(repository / manifest.name / "1", **{**manifest.options, **changed})


@functools.cache
def original(folder: Path, shape: str) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder.parent / "sources" / shape)


@pytest.mark.parametrize("shape", SHAPES)
@given(texts=st.lists(TEXT, min_size=1, max_size=5))
@settings(max_examples=100, deadline=None)
def test_rows_have_the_tokens_that_transformers_gives(repository: Path, shape: str, texts: list[str]) -> None:
    texts = [text.encode("utf-8", "ignore").decode() for text in texts]
    wanted = original(repository, shape)(
        texts, padding=True, truncation=True, return_token_type_ids=True, return_tensors="np"
    )
    got = tokens_of(repository, shape)([text.encode() for text in texts])
    for name, array in got.items():
        assert array.dtype == np.int64
        assert np.array_equal(array, wanted[name]), name
    assert got["input_ids"].shape[1] <= MAX_LENGTH


@pytest.mark.parametrize("shape", PAIRS)
@given(rows=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_pairs_have_the_tokens_and_types_that_transformers_gives(
    repository: Path, shape: str, rows: list[tuple[str, str]]
) -> None:
    rows = [tuple(text.encode("utf-8", "ignore").decode() for text in row) for row in rows]
    wanted = original(repository, shape)(
        *map(list, zip(*rows, strict=True)), padding=True, truncation=True, return_token_type_ids=True,
        return_tensors="np",
    )  # fmt: skip
    got = tokens_of(repository, f"{shape}_pair")([tuple(text.encode() for text in row) for row in rows])
    assert all(np.array_equal(array, wanted[name]) for name, array in got.items())
    assert got["input_ids"].shape[1] <= MAX_LENGTH


@pytest.mark.parametrize(
    ("row", "input", "said"),
    [
        ((b"a", b"\xff"), 1, "row 1: got byte 0xff at 0, which is not UTF-8"),
        ((None, b"a"), 0, "row 1: got a null, expected a text"),
        ((b"a", b" "), 1, "row 1: got a text without a token"),
        ((b"", b"a"), 0, "row 1: got a text without a token"),
        ((b"words " * 9, b"words " * 9), None, r"row 1: got \d\d tokens, expected at most 24"),
    ],
)
def test_a_pair_that_cannot_be_taken_names_its_text(
    repository: Path, row: tuple[bytes | None, bytes], input: int | None, said: str
) -> None:
    tokens = tokens_of(repository, "bert_pair", empty="refuse", over_length="refuse")
    with pytest.raises(TextError) as caught:
        tokens([(b"a", b"b"), row])
    assert re.match(said, str(caught.value))
    assert caught.value.input == input


def test_only_wanted_outputs_are_made(repository: Path) -> None:
    assert list(tokens_of(repository, "bert")([b"a"], ["attention_mask"])) == ["attention_mask"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"caf\xe9", "row 1: got byte 0xe9 at 3, which is not UTF-8, expected text in UTF-8"),
        (b"\xed\xa0\x80", "row 1: got byte 0xed at 0, which is not UTF-8"),
        (b"", "row 1: got a text without a token, expected some text"),
        (b" \n\t", "row 1: got a text without a token"),
        (None, "row 1: got a null, expected a text"),
        (b"x" * 10_000_000, "row 1: got 10000000 bytes, expected at most 262144; shorten the text"),
        (b"words " * 100, r"row 1: got \d\d\d tokens, expected at most 24; shorten the text, or export the"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_text_that_cannot_be_taken_is_one_line(repository: Path, text: bytes | None, said: str) -> None:
    tokens = tokens_of(repository, "bert", empty="refuse", over_length="refuse")
    with pytest.raises(TextError) as caught:
        tokens([ALIVE.encode(), text])
    assert re.match(said, str(caught.value))
    assert len(str(caught.value)) < 200


# -- the model file --------------------------------------------------------------------------------------


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTriton]:
    fake = FakeTriton({})
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", fake)
    path = list(sys.path)
    yield fake
    sys.path[:] = path
    sys.modules.pop("derive", None)


def loaded(folder: Path) -> Any:
    """The model in a version folder, as the server loads it."""
    module = types.ModuleType("model")
    module.__file__ = str(folder / "model.py")
    exec(compile((folder / "model.py").read_bytes(), module.__file__, "exec"), module.__dict__)
    model = module.TritonPythonModel()
    model.initialize({})
    return model


def asked(*rows: bytes | None) -> Request:
    outputs = ["input_ids", "attention_mask", "token_type_ids"]
    return Request({"text": np.array(rows, np.object_).reshape(-1, 1)}, wanted=outputs)


def test_a_bad_row_fails_its_request_and_no_other(repository: Path, triton: FakeTriton) -> None:
    model = loaded(repository / "tokenizer_bert" / "1")
    good, bad = asked(b"short", ALIVE.encode() * 2), asked(b"fine", b"\xff")
    alone = model.execute([good])[0]
    answers: list[InferenceResponse] = model.execute([bad, good, bad])
    for answer in answers[::2]:
        error = answer.error()
        assert error is not None
        assert error.message() == "text: row 1: got byte 0xff at 0, which is not UTF-8, expected text in UTF-8"
        assert error.code() == TritonError.INVALID_ARG
    for name in good.requested_output_names():
        assert np.array_equal(answers[1].column(name), alone.column(name))


def test_pairs_come_as_two_tensors_and_a_fault_names_the_tensor(repository: Path, triton: FakeTriton) -> None:
    model = loaded(repository / "tokenizer_bert_pair" / "1")

    def pairs(*rows: tuple[bytes, bytes]) -> Request:
        columns = np.array(rows, np.object_).T[:, :, None]
        return Request(dict(zip(TEXTS, columns, strict=True)), wanted=["input_ids", "token_type_ids"])

    answers: list[InferenceResponse] = model.execute(
        [pairs((b"one", b"two"), (b"a", b"b")), pairs((b"a", b"\xff"))]
    )
    wanted = tokens_of(repository, "bert_pair")([(b"one", b"two"), (b"a", b"b")])
    assert np.array_equal(answers[0].column("input_ids"), wanted["input_ids"])
    assert set(answers[0].column("token_type_ids").ravel()) == {0, 1}
    error = answers[1].error()
    assert error is not None
    assert error.message().startswith("text_pair: row 0: got byte 0xff at 0, which is not UTF-8")


def test_pairs_are_derived_in_this_process_as_they_are_served(repository: Path) -> None:
    deriver = local_deriver(repository, "tokenizer_bert_pair")
    columns = [[b"one", b"\xff", b"a"], [b"two words", b"b", b"\xff"]]
    rows = {name: np.array(column, object)[:, None] for name, column in zip(TEXTS, columns, strict=True)}
    made = deriver.completed(RowBlock(ids=np.arange(3), rows=rows), only="")
    assert [one.reason.split(":")[0] for one in made.refused] == ["text", "text_pair"]
    wanted = tokens_of(repository, "bert_pair")([(b"one", b"two words")])
    assert isinstance(made.rows, dict)
    assert np.array_equal(made.rows["token_type_ids"], wanted["token_type_ids"])


def test_a_fault_of_the_model_is_one_line_too(
    repository: Path, triton: FakeTriton, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded(repository / "tokenizer_bert" / "1")

    def fail(*_: object) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(model, "_derive", fail)
    error = model.execute([asked(b"a")])[0].error()
    assert error.message() == "tokenizer_bert: RuntimeError: two lines"
    assert error.code() == TritonError.INTERNAL


def test_a_missing_package_is_one_line_that_says_what_to_do(
    repository: Path, triton: FakeTriton, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(TritonModelError, match=r"pip install --no-deps tokenizers==[\d.]+`, or serve") as caught:
        loaded(repository / "tokenizer_bert" / "1")
    assert "\n" not in str(caught.value)


def test_files_of_another_export_are_refused(repository: Path, triton: FakeTriton, tmp_path: Path) -> None:
    source = save_tokenizer(tmp_path / "bert", "bert")
    write_deriving(tmp_path / "repository", tokenizer_model(source), force=False)
    folder = tmp_path / "repository" / "tokenizer_bert"
    assert not check(folder.parent).faults
    with (folder / "1" / "tokenizer.json").open("ab") as file:
        file.write(b" ")
    with pytest.raises(TritonModelError, match=r"tokenizer\.json is another file than was exported; export it"):
        loaded(folder / "1")
    assert "tokenizer.json is another file" in check(folder.parent).faults[0].text
    (folder / "1" / "tokenizer.json").unlink()
    with pytest.raises(TritonModelError, match=r"tokenizer\.json is missing"):
        loaded(folder / "1")
    assert "tokenizer.json is missing" in check(folder.parent).faults[0].text


def test_it_needs_numpy_and_tokenizers_alone(repository: Path) -> None:
    code = (
        "import sys, sysconfig\n"
        "class Alone:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        top = name.partition('.')[0]\n"
        "        known = top in sys.stdlib_module_names or top in ('numpy', 'tokenizers', 'derive')\n"
        "        if not known: raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Alone())\n"
        f"sys.path.insert(0, {str(repository / 'tokenizer_bert' / '1')!r})\n"
        "import derive, pathlib\n"
        f"options = {deriving_from_path(repository / 'tokenizer_bert' / 'manifest.json').options!r}\n"
        "print(derive.load(pathlib.Path(sys.path[0]), **options)([b'a b'])['input_ids'].shape)\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("(1, ")


# -- the export ------------------------------------------------------------------------------------------


def test_the_folders_of_the_shapes_decide_padding_and_length(repository: Path) -> None:
    options = {shape: tokens_of(repository, shape) for shape in SHAPES}
    two = [b"a", ALIVE.encode() * 9]
    masks = {shape: tokens(two)["attention_mask"] for shape, tokens in options.items()}
    assert [masks[shape][0, 0] for shape in SHAPES] == [1, 1, 0], "the last one pads on the left"
    assert all(mask.shape == (2, MAX_LENGTH) for mask in masks.values())
    assert options["roberta"](two)["input_ids"][0, -1] == 1, "its pad id"


def test_a_tokenizer_of_the_left_pads_on_the_right_where_asked_and_only_then_fits_plans(
    repository: Path, tmp_path: Path
) -> None:
    model = tokenizer_model(f"hf:{repository.parent / 'sources' / 'deberta'}", padding_side="right")
    manifest, _ = write_deriving(tmp_path, model, force=False)
    assert not manifest.pads_left
    mask = RowTokens(tmp_path / manifest.name / "1", **manifest.options)([b"a", ALIVE.encode()])["attention_mask"]
    assert mask[0].tolist() == sorted(mask[0], reverse=True)
    ids = InputSpec(name="input_ids", dtype="INT64", dims=(-1,))
    spec = CascadeSpec(
        name="c",
        classes=2,
        inputs=(ids,),
        stages=(Stage(members=(Member(name="m", output="logits"),)),),
    )
    assert derived_spec(spec, tmp_path, [manifest.name]).inputs == (
        InputSpec(name="text", dtype="STRING", dims=(1,)),
    )
    with pytest.raises(RepositoryError, match="got padding on the left, expected on the right; export it again"):
        derived_spec(spec, repository, [manifest.name])


def test_a_manifest_says_how_a_plan_derives(repository: Path) -> None:
    path = repository / "tokenizer_roberta" / "manifest.json"
    entry = deriving_from_path(path).as_derived()
    assert entry["model"] == "tokenizer_roberta"
    assert entry["inputs"] == {"text": "text"}
    assert entry["outputs"][0] == {"name": "input_ids", "dtype": "INT64", "dims": (-1,), "pad": 1}
    with pytest.raises(SpecError, match="a model that derives tensors, expected a member"):
        manifest_from_path(path)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            {"model_max_length": int(1e30)},
            "no model_max_length in tokenizer_config.json, expected the most tokens",
        ),
        ({"model_max_length": 2}, "a longest length of 2, expected room for a token besides the 2 special ones"),
    ],
)
def test_a_tokenizer_without_a_usable_length_is_refused(tmp_path: Path, more: dict[str, Any], said: str) -> None:
    source = save_tokenizer(tmp_path / "bert", "bert", **more)
    with pytest.raises(ExportError, match=said):
        tokenizer_model(source)
    assert tokenizer_model(source, max_length=16).options["max_length"] == 16


def test_a_tokenizer_without_a_pad_token_is_refused(tmp_path: Path) -> None:
    made = SHAPES["bert"]()
    made.pad_token = None
    made.save_pretrained(tmp_path / "bert")
    with pytest.raises(ExportError, match="no pad token, expected one, for rows of different length; name one"):
        tokenizer_model(f"hf:{tmp_path / 'bert'}")


@pytest.mark.parametrize("content", [None, "", "{}", '{"version": "1.0"'])
def test_a_folder_without_a_tokenizer_is_one_line(tmp_path: Path, content: str | None) -> None:
    (tmp_path / "it").mkdir()
    if content is not None:
        (tmp_path / "it" / "tokenizer.json").write_text(content)
    with pytest.raises(ExportError, match=r"got no tokenizer that loads \(.*expected tokenizer\.json") as caught:
        tokenizer_model(f"hf:{tmp_path / 'it'}")
    assert "\n" not in str(caught.value)


def test_another_model_of_the_name_is_not_written_over(repository: Path, tmp_path: Path) -> None:
    model = tokenizer_model(save_tokenizer(tmp_path / "bert", "bert"))
    (tmp_path / "tokenizer_bert" / "1").mkdir(parents=True)
    (tmp_path / "tokenizer_bert" / "1" / "model.py").write_text("mine")
    with pytest.raises(ExportError, match="another model called tokenizer_bert"):
        write_deriving(tmp_path, model, force=False)
    assert write_deriving(tmp_path, model, force=True)[1]
    assert not write_deriving(tmp_path, model, force=False)[1], "up to date"
