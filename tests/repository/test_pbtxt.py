import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2 as pb

from orchestrator.errors import RepositoryError
from orchestrator.pbtxt import config_from_path, config_from_text, differences, is_written_here, text_from_config
from orchestrator.repository.configs import cascade_config, ensemble_config, member_config
from orchestrator.spec import (
    CascadeSpec,
    Derived,
    DerivedTensor,
    InputSpec,
    Limits,
    Member,
    RowTensor,
    Stage,
    cascade_from_json,
    json_from_cascade,
)
from orchestrator.spec.request import INPUT_DTYPES
from tests.repository.builders import manifest_of, spec_of

TWO = spec_of(Member(name="small", output="logits"), Member(name="large", output="scores", inputs={"pixels": "x"}))


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), min_size=1, max_size=12)


@st.composite
def tensors(draw: st.DrawFn, made: type[RowTensor], name: str) -> Any:
    """A tensor of numbers, of text, or of a length that varies."""
    kind = draw(st.sampled_from(["fixed", "text", "length"]))
    if kind == "text":
        return made(name=name, dtype="STRING", dims=(1,))
    dims = draw(st.lists(st.integers(1, 200), min_size=1, max_size=4))
    dtype = draw(st.sampled_from(list(INPUT_DTYPES)))
    if kind == "fixed":
        return made(name=name, dtype=dtype, dims=tuple(dims))
    dims[draw(st.integers(0, len(dims) - 1))] = -1
    buckets = tuple(sorted(draw(st.sets(st.integers(1, 500), max_size=3))))
    return made(name=name, dtype=dtype, dims=tuple(dims), pad=draw(st.integers(0, 1)), buckets=buckets)


@st.composite
def specs(draw: st.DrawFn) -> CascadeSpec:
    words = WORDS
    names = draw(st.lists(st.from_regex(r"\A[a-z][a-z0-9_.\-]{0,8}\Z"), min_size=1, max_size=4, unique=True))
    members = tuple(Member(name=f"m_{name}", output=draw(words)) for name in names)
    classes = draw(st.integers(2, 5))
    labels = draw(st.none() | st.lists(words, min_size=classes, max_size=classes).map(tuple))
    own = draw(st.lists(words, min_size=1, max_size=5, unique=True))
    cut = draw(st.integers(1, len(own)))
    outputs = tuple(draw(tensors(DerivedTensor, name)) for name in own[cut:])
    return CascadeSpec(
        name="c",
        inputs=tuple(draw(tensors(InputSpec, name)) for name in own[:cut]),
        derived=(Derived(name="deriving", inputs={"a": own[0]}, outputs=outputs),) if outputs else (),
        classes=classes,
        labels=labels,
        stages=(Stage(members=members),),
        limits=Limits(max_batch_size=draw(st.integers(1, 2**20)), max_deferred_rows=draw(st.integers(1, 2**20))),
    )


@given(spec=specs())
def test_what_is_written_reads_back_equal_and_the_same_bytes_twice(spec: CascadeSpec) -> None:
    assert cascade_from_json(json_from_cascade(spec)) == spec
    assert json_from_cascade(cascade_from_json(json_from_cascade(spec))) == json_from_cascade(spec)
    for config in (cascade_config(spec), ensemble_config(spec, max_batch_size=4)):
        text = text_from_config(config)
        assert config_from_text(text, subject="c") == config
        assert text_from_config(config_from_text(text, subject="c")) == text
        assert is_written_here(text)


def test_maps_are_written_in_one_order_whatever_order_they_were_filled_in() -> None:
    texts = set()
    for order in (("a", "b", "c"), ("c", "a", "b")):
        config = pb.ModelConfig(name="m")
        for key in order:
            config.parameters[key].string_value = key
        texts.add(text_from_config(config))
    assert len(texts) == 1


def test_the_first_line_says_who_wrote_it_and_what_to_edit_instead() -> None:
    text = text_from_config(cascade_config(TWO))
    assert text.splitlines()[0] == "# Written by committee; edit cascade.json and render again."
    assert "edit manifest.json" in text_from_config(
        member_config(manifest_of("m", "0" * 64)), source="manifest.json"
    )


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace("max_batch_size: 32", "max_batch_size: 16"),
        lambda text: text + "# a remark\n",
        lambda text: text.split("\n", 1)[1],
        lambda text: text.replace("Written by committee", "Written by me"),
        lambda _: 'name: "cascade"\n',
        lambda _: "",
    ],
)
def test_any_edit_makes_a_text_somebody_elses(edit: object) -> None:
    text = text_from_config(cascade_config(TWO))
    assert is_written_here(text)
    assert not is_written_here(edit(text))


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ('name: "m"\nmax_batch_size: "8"\n', 2, "integer"),
        ('name: "m"\n\nmax_batch: 8\n', 3, 'no field named "max_batch"'),
        ('name: "m"\ninput [ {\n name: "x"\n', 3, 'Expected "}"'),
        ('name: "m"\ninput [ { data_type: TYPE_FLOAT } ]', 2, "TYPE_FLOAT"),
    ],
)
def test_a_malformed_text_is_an_error_that_names_file_line_and_reason(
    tmp_path: Path, text: str, line: int, reason: str
) -> None:
    path = tmp_path / "config.pbtxt"
    path.write_text(text)
    with pytest.raises(RepositoryError) as caught:
        config_from_path(path)
    assert f"{path} at line {line}" in str(caught.value)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_text_cut_anywhere_reads_or_is_a_repository_error() -> None:
    text = text_from_config(ensemble_config(spec_of(*TWO.members), max_batch_size=4))
    refused = 0
    for end in range(len(text)):
        try:
            config_from_text(text[:end], subject="cut")
        except RepositoryError:
            refused += 1
    assert refused > len(text) / 2


@given(garbage=st.text(max_size=60) | st.from_regex(r'name: ?["{\[]+[a-z"}\]: ]*'))
def test_garbage_is_a_repository_error_and_nothing_else(garbage: str) -> None:
    with contextlib.suppress(RepositoryError):
        config_from_text(garbage, subject="garbage")


def test_files_that_cannot_be_read_are_repository_errors(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="does not exist"):
        config_from_path(tmp_path / "config.pbtxt")
    with pytest.raises(RepositoryError, match="is a folder"):
        config_from_path(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RepositoryError, match="not UTF-8"):
        config_from_path(tmp_path / "binary")


def test_differences_name_each_top_level_field_with_both_values() -> None:
    one, two = cascade_config(TWO), cascade_config(TWO)
    assert differences(one, two) == {}
    one.max_batch_size = 7
    one.parameters["verify_hashes"].string_value = "no"
    found = differences(one, two)
    assert set(found) == {"max_batch_size", "parameters"}
    assert found["max_batch_size"] == ("max_batch_size: 7", "max_batch_size: 32")
    assert "verify_hashes" not in found["parameters"][1]
