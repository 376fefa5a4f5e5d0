"""Plans of several tensors and of derived ones in a repository: rendered, checked, and made from plans without."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from tritonclient.grpc import model_config_pb2 as pb
from typer.testing import CliRunner

from orchestrator.errors import RepositoryError
from orchestrator.pbtxt import config_from_path
from orchestrator.repository.check import check
from orchestrator.repository.configs import cascade_config
from orchestrator.repository.derive import derived_spec
from orchestrator.repository.render import ensemble_from_cascade, render, render_ensemble
from orchestrator.spec import CascadeSpec, InputSpec, Member, TensorSpec, cascade_from_path, json_from_cascade
from orchestrator.spec.deriving import DerivingManifest, PaddedTensor, json_from_deriving
from tests.cli.test_render import APP
from tests.repository.builders import TOKENS, add_member, spec_of, token_model

TOKENIZER = """
backend: "python"
max_batch_size: 8
input [{ name: "TEXT" data_type: TYPE_STRING dims: [1] }]
output [{ name: "input_ids" data_type: TYPE_INT64 dims: [-1] },
         { name: "attention_mask" data_type: TYPE_INT64 dims: [-1] }]
"""
BUCKETS = (4, 16)
GIVEN = tuple(InputSpec(name=one.name, dtype="INT64", dims=(-1,), buckets=BUCKETS) for one in TOKENS)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two members that read tokens and a tokenizer."""
    folder = tmp_path / "model_repository"
    (folder / "tokens/1").mkdir(parents=True)
    (folder / "tokens/1/model.py").write_text("")
    (folder / "tokens/config.pbtxt").write_text(TOKENIZER)
    for seed, name in enumerate(("small", "large")):
        add_member(folder, name, model=token_model(seed), inputs=TOKENS)
    return folder


def given(repository: Path) -> CascadeSpec:
    """The plan whose requests bring tokens."""
    members = (cascade_member(name) for name in ("small", "large"))
    return dataclasses.replace(spec_of(*members), inputs=GIVEN)


def cascade_member(name: str) -> Member:
    return Member(name=name, output="logits", cost=12.0, max_batch_size=8)


def derived(repository: Path) -> CascadeSpec:
    return derived_spec(given(repository), repository, ["tokens"])


def test_inputs_are_all_there_and_those_of_varying_length_are_ragged(repository: Path) -> None:
    spec = dataclasses.replace(
        given(repository), inputs=(*GIVEN, InputSpec(name="text", dtype="STRING", dims=(1,)))
    )
    spec = spec.with_members(lambda one: dataclasses.replace(one, inputs={x.name: x.name for x in GIVEN}))
    config = cascade_config(spec)
    assert [(one.name, one.data_type, list(one.dims), one.allow_ragged_batch) for one in config.input] == [
        ("input_ids", pb.TYPE_INT64, [-1], True),
        ("attention_mask", pb.TYPE_INT64, [-1], True),
        ("text", pb.TYPE_STRING, [1], False),
    ]


def test_a_plan_gets_a_tokenizer_and_passes_the_check(repository: Path) -> None:
    spec = derived(repository)
    assert [(one.name, one.dtype, one.dims) for one in spec.inputs] == [("TEXT", "STRING", (1,))]
    (model,) = spec.derived
    assert (model.name, model.inputs, model.max_batch_size) == ("tokens", {"TEXT": "TEXT"}, 8)
    assert [(one.name, one.buckets) for one in model.outputs] == [(one.name, BUCKETS) for one in GIVEN]
    render(spec, repository)
    report = check(repository)
    assert report, report.faults
    read = cascade_from_path(repository / "cascade/1/cascade.json")
    assert read.derived[0].version == 1
    assert [one.name for one in config_from_path(repository / "cascade/config.pbtxt").input] == ["TEXT"]


def test_the_command_line_takes_the_model(repository: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text(json_from_cascade(given(repository)))
    command = [str(plan), "--repository", str(repository), "--derive", "tokens"]
    result = CliRunner().invoke(APP, command)
    assert result.exit_code == 0, result.output
    assert [one.name for one in cascade_from_path(repository / "cascade/1/cascade.json").derived] == ["tokens"]


@pytest.mark.parametrize(
    ("model", "words"),
    [("nobody", "got no such model"), ("small", "got outputs logits, expected one of the plan's")],
)
def test_a_model_that_makes_nothing_of_the_plan_is_refused(repository: Path, model: str, words: str) -> None:
    with pytest.raises(RepositoryError, match=words):
        derived_spec(given(repository), repository, [model])


CLEANER = """
backend: "python"
max_batch_size: 8
input [{ name: "RAW" data_type: TYPE_STRING dims: [1] }]
output [{ name: "TEXT" data_type: TYPE_STRING dims: [1] }]
"""


@pytest.mark.parametrize("models", [["tokens", "cleaner"], ["cleaner", "tokens"]])
def test_models_that_read_one_another_are_named_in_any_order(repository: Path, models: list[str]) -> None:
    (repository / "cleaner").mkdir()
    (repository / "cleaner/config.pbtxt").write_text(CLEANER)
    spec = derived_spec(given(repository), repository, models)
    assert [one.name for one in spec.inputs] == ["RAW"]
    assert [(one.name, one.inputs) for one in spec.derived] == [
        ("tokens", {"TEXT": "TEXT"}), ("cleaner", {"RAW": "RAW"}),
    ]  # fmt: skip


def test_a_model_gets_the_text_that_the_plan_has_under_another_name_but_no_numbers_under_its_own(
    repository: Path,
) -> None:
    text = InputSpec(name="sentence", dtype="STRING", dims=(1,))
    spec = dataclasses.replace(given(repository), inputs=(*GIVEN, text))
    (model,) = derived_spec(spec, repository, ["tokens"]).derived
    assert model.inputs == {"TEXT": "sentence"}
    spec = dataclasses.replace(spec, inputs=(*GIVEN, InputSpec(name="TEXT", dtype="FP32", dims=(3,))))
    with pytest.raises(
        RepositoryError, match=r"input TEXT: got STRING \[1\], expected FP32 \[3\], which the plan"
    ):
        derived_spec(spec, repository, ["tokens"])


def test_an_ensemble_has_the_tokenizer_as_a_step(repository: Path) -> None:
    spec = ensemble_from_cascade(derived(repository), "together")
    render_ensemble(spec, repository)
    steps = config_from_path(repository / "together/config.pbtxt").ensemble_scheduling.step
    assert [step.model_name for step in steps] == ["tokens", "small", "large", "together_mean"]
    assert dict(steps[0].input_map) == {"TEXT": "TEXT"}
    assert dict(steps[0].output_map) == dict(steps[1].input_map) == {one.name: one.name for one in GIVEN}
    report = check(repository, ["together"])
    assert report, report.faults


def config_with(old: str, new: str) -> Callable[[Path], None]:
    def change(repository: Path) -> None:
        path = repository / "tokens/config.pbtxt"
        path.write_text(path.read_text().replace(old, new))

    return change


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (config_with("max_batch_size: 8", "max_batch_size: 4"),
            "got max_batch_size 8 in the plan, expected at most its config's 4"),
        (config_with("max_batch_size: 8", "max_batch_size: 0"), "takes no batches"),
        (config_with('"TEXT"', '"WORDS"'), "got input TEXT in the plan, expected one of WORDS"),
        (config_with("TYPE_STRING", "TYPE_UINT8"), "input TEXT is UINT8, expected the plan's STR"),
        (config_with('"input_ids"', '"ids"'), "got output input_ids in the plan, expected one of ids"),
        (config_with("TYPE_INT64", "TYPE_INT32"), "output input_ids is INT32 [-1], expected the"),
        (lambda r: (r / "tokens").rename(r.parent / "away"), "no such model"),
    ],
)  # fmt: skip
def test_what_does_not_fit_a_deriving_model_is_a_fault(
    repository: Path, spoil: Callable[[Path], None], words: str
) -> None:
    render(derived(repository), repository)
    spoil(repository)
    found = [(one.field, one.text) for one in check(repository).faults]
    assert [text for name, text in found if name == "deriving model tokens" and words in text], found


def test_a_member_of_one_length_alone_does_not_fit_rows_of_many(repository: Path) -> None:
    render(derived(repository), repository)
    path = repository / "small/config.pbtxt"
    path.write_text(path.read_text().replace("dims: -1", "dims: 16").replace("dims: [-1]", "dims: [16]"))
    found = [one.text for one in check(repository).faults if one.field == "member small"]
    assert [one for one in found if "input input_ids has dims [16], expected a length that varies, [-1]" in one], (
        found
    )


def test_a_member_that_reads_more_than_the_plan_gives_is_a_fault(repository: Path) -> None:
    spec = derived(repository).with_members(
        lambda one: dataclasses.replace(one, inputs={"input_ids": "input_ids"})
    )
    render(spec, repository)
    found = [one.text for one in check(repository).faults if one.field == "member large"]
    assert found == ["needs inputs attention_mask too, expected input_ids alone"]


def test_what_the_export_says_of_a_tokenizer_is_taken(repository: Path) -> None:
    outputs = tuple(PaddedTensor(name=one.name, dtype="INT64", dims=(-1,), pad=7.0) for one in TOKENS)
    manifest = DerivingManifest(
        name="tokens", derives="tokens", file="1/model.py", sha256="a" * 64, source="made up", outputs=outputs,
        inputs=(TensorSpec(name="TEXT", dtype="STRING", dims=(1,)),),
    )  # fmt: skip
    (repository / "tokens/manifest.json").write_text(json_from_deriving(manifest))
    (model,) = derived(repository).derived
    assert [one.pad for one in model.outputs] == [7, 7]
    assert model.sha256 == "a" * 64
    left = dataclasses.replace(manifest, options={"padding_side": "left"})
    (repository / "tokens/manifest.json").write_text(json_from_deriving(left))
    with pytest.raises(RepositoryError, match="got padding on the left, expected on the right; export it again"):
        derived(repository)
