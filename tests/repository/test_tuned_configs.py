"""What a person sets in a rendered config.pbtxt stays, and what the plan decides does not change by it."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc.model_config_pb2 import ModelConfig

from orchestrator.cli.render import render as render_command
from orchestrator.errors import RepositoryError
from orchestrator.pbtxt import config_from_path, config_from_text, line_of_field, text_from_config
from orchestrator.repository.check import check
from orchestrator.repository.configs import TUNABLE, cascade_config, tuned_text, with_plan_of
from orchestrator.repository.render import ensemble_from_cascade, render, render_ensemble
from orchestrator.spec import CascadeSpec, json_from_cascade
from tests.repository.builders import render_output, snapshot, spec_of
from tests.repository.faults import add, edit, has

POLICY = "version_policy { all { } }"
DELAY = "max_queue_delay_microseconds: 500"
UNVERIFIED = 'parameters { key: "verify_hashes" value { string_value: "no" } }'


def tune(path: Path) -> None:
    edit(path, "count: 1", "count: 2")
    edit(path, "dynamic_batching {\n", f"dynamic_batching {{\n  {DELAY}\n")
    for line in (POLICY, UNVERIFIED, "# ours, do not touch: { [ <"):
        add(path, line)


def is_tuned(path: Path) -> bool:
    config = config_from_path(path)
    return (
        config.version_policy.HasField("all")
        and [group.count for group in config.instance_group] == [2]
        and config.dynamic_batching.max_queue_delay_microseconds == 500
        and config.parameters["verify_hashes"].string_value == "no"
        and "# ours, do not touch: { [ <" in path.read_text()
    )


def test_settings_of_ones_own_survive_any_number_of_renderings_of_changing_plans(
    repository: Path, spec: CascadeSpec
) -> None:
    render(spec, repository)
    path = repository / "cascade" / "config.pbtxt"
    tune(path)
    edited = path.read_text()
    render(spec, repository)
    assert path.read_text() == edited
    for labels, size in ((None, 16), (("ape", "bat", "cat"), 24), (None, 16)):
        limits = dataclasses.replace(spec.limits, max_batch_size=size)
        render(dataclasses.replace(spec, labels=labels, limits=limits), repository)
        assert is_tuned(path)
        assert config_from_path(path).max_batch_size == size
        assert bool(config_from_path(path).output[0].label_filename) == (labels is not None)
        report = check(repository, ["cascade"])
        assert report, report.faults
        assert {note.field for note in report.notes if note.model == "cascade"} == {
            f"config.pbtxt {field}"
            for field in ("instance_group", "dynamic_batching", "version_policy", "parameters")
        }


def test_the_help_and_the_docs_list_all_that_is_kept() -> None:
    root = Path(__file__).parents[2]
    for text in (str(render_command.__doc__), (root / "docs" / "adopting.md").read_text()):
        assert [field for field in sorted(TUNABLE) if field not in text] == []


def test_the_check_says_of_an_edit_what_rendering_makes_of_it(repository: Path, spec: CascadeSpec) -> None:
    render(spec, repository)
    larger = dataclasses.replace(spec, limits=dataclasses.replace(spec.limits, max_batch_size=16))
    path, plan = repository / "cascade" / "config.pbtxt", repository / "cascade" / "1" / "cascade.json"
    add(path, POLICY)
    plan.write_text(json_from_cascade(larger))
    field = "config.pbtxt max_batch_size"
    (fault,) = (one for one in check(repository, ["cascade"]).faults if one.field == field)
    assert fault.text.endswith("; render again")
    render(larger, repository)
    report = check(repository, ["cascade"])
    assert report, report.faults
    assert has(report, "cascade", "config.pbtxt version_policy", "render keeps it", notes=True)
    edit(path, "max_batch_size: 16", "max_batch_size: 64")
    assert has(check(repository, ["cascade"]), "cascade", field, "undo it", "or remove the file and render again")
    with pytest.raises(RepositoryError, match="edits of what the plan decides"):
        render(larger, repository)
    path.unlink()
    render(larger, repository)
    assert check(repository, ["cascade"])


def test_both_configs_of_an_ensemble_keep_them(repository: Path, spec: CascadeSpec) -> None:
    together = ensemble_from_cascade(spec, "together")
    render_ensemble(together, repository)
    add(repository / "together" / "config.pbtxt", POLICY)
    edit(repository / "together_mean" / "config.pbtxt", "count: 1", "count: 3")
    render_ensemble(dataclasses.replace(together, labels=None), repository)
    assert config_from_path(repository / "together" / "config.pbtxt").version_policy.HasField("all")
    assert config_from_path(repository / "together_mean" / "config.pbtxt").instance_group[0].count == 3
    assert check(repository)


def test_a_config_of_ours_without_its_first_lines_is_still_ours(repository: Path, spec: CascadeSpec) -> None:
    render(spec, repository)
    path = repository / "cascade" / "config.pbtxt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[2:]) + POLICY)
    render(spec, repository)
    assert config_from_path(path).version_policy.HasField("all")


@pytest.mark.parametrize("where", ["repository", "output"])
def test_a_copy_elsewhere_has_what_was_set_in_either_place(
    repository: Path, spec: CascadeSpec, tmp_path: Path, where: str
) -> None:
    render(spec, repository)
    output = tmp_path / "out"
    render_output(repository, output, cascades=[spec])
    tune((repository if where == "repository" else output) / "cascade" / "config.pbtxt")
    for _ in range(2):
        render_output(repository, output, cascades=[dataclasses.replace(spec, labels=None)], standalone=True)
        assert is_tuned(output / "cascade" / "config.pbtxt")
        assert not (output / "cascade" / "config.pbtxt").is_symlink()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("max_batch_size: 32", "max_batch_size: 64", ("line 4: max_batch_size: 64", "max_batch_size: 32")),
        ('backend: "python"', 'backend: "ours"', ('backend: "ours"', 'expected backend: "python"')),
        ("max_batch_size: 32\n", "", ("no max_batch_size, expected max_batch_size: 32",)),
        ("dynamic_batching {\n}", "response_cache { enable: true }", ("response_cache", "expected nothing")),
        ("dims: 4", "dims: 5", ("line 5: input {", "dims: 5 }, expected", "dims: 4 }")),
        (
            'name: "cost"',
            'name: "price"',
            ("line 31: output {", 'name: "price"', 'expected output { name: "cost"'),
        ),
    ],
)
def test_an_edit_of_what_the_plan_decides_is_named_by_its_line_and_nothing_is_written(
    repository: Path, spec: CascadeSpec, old: str, new: str, words: tuple[str, ...]
) -> None:
    render(spec, repository)
    path = repository / "cascade" / "config.pbtxt"
    edit(path, old, new)
    add(path, POLICY)
    before = snapshot(repository)
    with pytest.raises(RepositoryError) as caught:
        render(spec, repository)
    assert snapshot(repository) == before
    assert all(word in str(caught.value) for word in (str(path), "`force`", "version_policy", *words)), (
        caught.value
    )
    render(spec, repository, force=True)
    assert not config_from_path(path).HasField("version_policy")


def test_a_plan_goes_into_the_version_that_ones_own_policy_serves(repository: Path, spec: CascadeSpec) -> None:
    for version in (1, 2):
        render(spec, repository, version=version)
    add(repository / "cascade" / "config.pbtxt", "version_policy { specific { versions: [1] } }")
    render(dataclasses.replace(spec, score="top2_gap"), repository)
    assert "top2_gap" in (repository / "cascade" / "1" / "cascade.json").read_text()
    assert "top2_gap" not in (repository / "cascade" / "2" / "cascade.json").read_text()
    assert check(repository, ["cascade"])
    with pytest.raises(RepositoryError, match="got 3, expected one that the version_policy"):
        render(spec, repository, version=3)


FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "dynamic_batching": st.sampled_from(["dynamic_batching { }", f"dynamic_batching {{ {DELAY} }}"]),
        "version_policy": st.sampled_from([POLICY, "version_policy { specific { versions: [1, 2] } }"]),
        "instance_group": st.sampled_from(["instance_group { count: 3 kind: KIND_CPU }"]),
        "parameters": st.sampled_from([UNVERIFIED]),
        "metric_tags": st.sampled_from(['metric_tags { key: "a" value: "b" }']),
    },
)


@given(first=FIELDS, second=FIELDS, sizes=st.lists(st.integers(1, 300), min_size=2, max_size=4))
def test_whatever_is_set_is_what_the_next_config_has_and_all_else_is_the_plans(
    first: dict[str, str], second: dict[str, str], sizes: list[int]
) -> None:
    text = ""
    for place, size in enumerate(sizes):
        rendered = cascade_config(_spec(size))
        if place == 0:
            text = text_from_config(rendered)
        tuned = config_from_text(text, subject="config")
        for field in TUNABLE:
            tuned.ClearField(field)
        chosen = (first, second)[place % 2]
        tuned.MergeFrom(config_from_text("\n".join(chosen.values()), subject="chosen"))
        # Who edits leaves the plan's hash where it is: without it nobody can tell an edit from an older plan.
        tuned = with_plan_of(tuned, config_from_text(text, subject="config"))
        header = "\n".join(text.splitlines()[:2])
        text = tuned_text(f"{header}\n{_text(tuned)}", rendered, path=Path("config.pbtxt"))
        found = config_from_text(text, subject="found")
        for field in ModelConfig.DESCRIPTOR.fields_by_name:
            source = with_plan_of(tuned, rendered) if field in TUNABLE else rendered
            assert getattr(found, field) == getattr(source, field), field


def _spec(size: int) -> CascadeSpec:
    from orchestrator.spec import Limits, Member  # only this test needs a plan without a repository

    member = Member(name="small", output="logits")
    return spec_of(member, limits=Limits(max_batch_size=size))


def _text(config: ModelConfig) -> str:
    return text_from_config(config).split("\n", 2)[2]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("max_batch_size: 1", 1),
        ("# max_batch_size: 1\n\nmax_batch_size: 1", 3),
        ('name: "max_batch_size: {"\nmax_batch_size: 1', 2),
        ("model_warmup [ {\n max_batch_size: 1\n} ]\nbackend: 'x' max_batch_size : 1", 4),
        ("preferred_max_batch_size: 1", None),
    ],
)
def test_the_line_of_a_field_is_that_of_the_configuration_itself(text: str, line: int | None) -> None:
    assert line_of_field(text, "max_batch_size") == line


def test_settings_in_a_folder_that_a_killed_rendering_took_away_are_not_lost(
    repository: Path, spec: CascadeSpec, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    render_output(repository, output, cascades=[spec])
    tune(output / "cascade" / "config.pbtxt")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    old = tmp_path / f".out.partial-{ended.pid}" / "old"
    old.mkdir(parents=True)
    (output / "cascade").rename(old / "cascade")
    render_output(repository, output, cascades=[spec])
    assert is_tuned(output / "cascade" / "config.pbtxt")
    assert not old.exists()
