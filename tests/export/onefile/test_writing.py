import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from export.__main__ import app
from export.onefile.writing import onefile_model, require_fits, write_onefile
from orchestrator.errors import CommitteeError, ExportError
from orchestrator.graphs.onefile import ONEFILE_KEY, answering, onefile_from_model
from orchestrator.pbtxt import config_from_path
from orchestrator.repository.check import check
from orchestrator.repository.render import render
from orchestrator.spec import CascadeSpec, cascade_from_path
from tests.export.onefile.builders import cascade, member_of, put, put_slicing
from tests.repository.builders import add_member, snapshot, spec_of

REPOSITORY = Path(__file__).parents[3] / "model_repository"
DIGITS = REPOSITORY / "digits_cascade" / "1" / "cascade.json"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two linear members with manifests and configs, and a cascade of them."""
    render(spec(tmp_path), tmp_path)
    return tmp_path


def spec(repository: Path) -> CascadeSpec:
    return spec_of(add_member(repository, "small", seed=1), add_member(repository, "large", seed=2))


def plan_in(repository: Path) -> CascadeSpec:
    return cascade_from_path(repository / "cascade" / "1" / "cascade.json")


def test_a_written_model_lies_in_its_repository_as_any_other(repository: Path) -> None:
    done = write_onefile(plan_in(repository), repository)
    assert (done.name, done.stages, done.members, done.changed) == ("cascade_onefile", 2, ("small", "large"), True)
    config = config_from_path(done.folder / "config.pbtxt")
    assert (config.name, config.backend, config.max_batch_size) == ("cascade_onefile", "onnxruntime", 32)
    assert [(group.count, group.kind) for group in config.instance_group] == [(1, 2)]
    assert config.parameters["intra_op_thread_count"].string_value == "1"
    assert config.HasField("dynamic_batching")
    served = config_from_path(repository / "cascade" / "config.pbtxt")
    assert (list(config.input), list(config.output)) == (list(served.input), list(served.output))
    assert (done.folder / "labels.txt").read_text() == "ant\nbee\ncow\n"
    report = check(repository)
    assert report, report.faults
    before = snapshot(repository)
    assert not write_onefile(plan_in(repository), repository).changed
    assert snapshot(repository) == before


@pytest.mark.parametrize("members", [["small"], ["small", "large"]])
def test_a_lead_has_one_output_per_member_inside(repository: Path, members: list[str]) -> None:
    done = write_onefile(plan_in(repository), repository, stages=len(members))
    config = config_from_path(done.folder / "config.pbtxt")
    assert done.name == "cascade_lead"
    assert [(one.name, list(one.dims)) for one in config.output] == [(name, [3]) for name in members]
    assert check(repository)


def test_another_repository_is_written_into_without_touching_the_first(repository: Path, tmp_path: Path) -> None:
    before = snapshot(repository)
    done = write_onefile(plan_in(repository), repository, output=tmp_path / "new" / "out", name="mine")
    assert done.folder == tmp_path / "new" / "out" / "mine"
    assert {k: v for k, v in snapshot(repository).items() if not k.startswith("new/")} == before


def test_the_model_is_of_versions_that_old_runtimes_read_and_passes_the_full_checker(repository: Path) -> None:
    model, _ = onefile_model(plan_in(repository), repository)
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version <= 10
    assert [(one.domain, one.version) for one in model.opset_import] == [("", 18)]


def test_the_model_says_what_it_was_made_of(repository: Path) -> None:
    plan = plan_in(repository)
    model, onefile = onefile_model(plan, repository)
    assert onefile_from_model(model, subject="here") == onefile
    assert onefile.spec == answering(plan)
    data = (repository / "small" / "1" / "model.onnx").read_bytes()
    assert onefile.sha256["small"] == hashlib.sha256(data).hexdigest()
    foreign = onnx.ModelProto()
    foreign.CopyFrom(model)
    foreign.producer_name = "someone"
    assert onefile_from_model(foreign, subject="here") is None


def ones(classes: int = 2) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ones((4, classes), np.float32), "w")


def far_away() -> onnx.TensorProto:
    weights = ones()
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="../../../secret")
    return weights


def unfit(kind: str) -> onnx.ModelProto:
    """A model that cannot be the second member of a cascade of 2 classes over 4 columns."""
    product = helper.make_node("MatMul", ["x", "w"], ["logits"])
    cast = [
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("Cast", ["y"], ["logits"], to=TensorProto.INT64),
    ]
    made: dict[str, tuple[list[onnx.NodeProto], list[onnx.TensorProto], dict[str, Any]]] = {
        "fixed batch": ([product], [ones()], {"batch": 1}),
        "classes": ([product], [ones(3)], {"classes": 3}),
        "integers": (cast, [ones()], {"dtype": TensorProto.INT64}),
        "outside": ([product], [far_away()], {}),
        "domains": ([helper.make_node("Odd", ["x"], ["logits"], domain="com.example")], [], {}),
    }
    nodes, weights, changes = made[kind]
    return member_of(nodes, weights, width=4, **{"classes": 2, **changes})


def broken(repository: Path, kind: str) -> None:
    """Spoils the second member in one way."""
    path = repository / "m1" / "1" / "model.onnx"
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-20])
    elif kind == "missing":
        shutil.rmtree(repository / "m1")
    elif kind == "an engine":
        path.rename(path.with_name("model.plan"))
        (repository / "m1" / "config.pbtxt").write_text('backend: "tensorrt"\nmax_batch_size: 8\n')
    else:
        put(repository, "m1", unfit(kind))


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("truncated", "m1/1/model.onnx: got no ONNX model"),
        ("missing", "member m1: got no folder"),
        ("fixed batch", "member m1: got a batch fixed at 1"),
        ("classes", r"member m1: got output logits FP32 \[-1, 3\] for 2 classes"),
        ("integers", r"member m1: got output logits INT64 \[-1, 2\] for 2 classes"),
        ("an engine", "member m1: got tensorrt, expected an ONNX model"),
        ("outside", "member m1: got weights of .* that cannot be read"),
        ("domains", "made_up as one graph: got"),
    ],
)
def test_a_member_that_cannot_be_part_of_a_graph_is_one_clear_line(tmp_path: Path, kind: str, says: str) -> None:
    made = cascade([1, 1], 2)
    put_slicing(tmp_path, made)
    broken(tmp_path, kind)
    with pytest.raises(CommitteeError, match=says) as caught:
        write_onefile(made, tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "made_up_onefile").exists()


def test_a_member_other_than_the_thresholds_were_fitted_on_is_refused(tmp_path: Path) -> None:
    made = cascade([1, 1], 2)
    put_slicing(tmp_path, made)
    first, last = made.stages
    other = dataclasses.replace(last.members[0], sha256="0" * 64)
    made = dataclasses.replace(made, stages=(first, dataclasses.replace(last, members=(other,))))
    with pytest.raises(ExportError, match="which the thresholds were fitted on; plan again"):
        write_onefile(made, tmp_path)


@pytest.mark.parametrize("member", ["python", "cascade"])
def test_members_without_a_graph_of_their_own_are_refused(repository: Path, member: str) -> None:
    plan = plan_in(repository)
    (repository / "python" / "1").mkdir(parents=True)
    (repository / "python" / "1" / "model.py").write_text("")
    (repository / "python" / "config.pbtxt").write_text('backend: "python"')
    first, last = plan.stages
    asked = dataclasses.replace(last.members[0], name=member, sha256=None)
    outer = dataclasses.replace(plan, name="outer", stages=(first, dataclasses.replace(last, members=(asked,))))
    kind = "python" if member == "python" else "a cascade itself"
    with pytest.raises(ExportError, match=f"got {kind}, expected an ONNX model"):
        write_onefile(outer, repository)


def test_models_that_the_command_did_not_write_are_left_alone(repository: Path) -> None:
    plan = plan_in(repository)
    for name in ("cascade", "small"):
        with pytest.raises(ExportError, match="a model of the cascade itself"):
            write_onefile(plan, repository, name=name)
    add_member(repository, "theirs", seed=3)
    before = snapshot(repository)
    with pytest.raises(ExportError, match="choose another `name`"):
        write_onefile(plan, repository, name="theirs")
    assert snapshot(repository) == before
    done = write_onefile(plan, repository)
    config = done.folder / "config.pbtxt"
    config.write_text(config.read_text() + "# tuned\n")
    with pytest.raises(ExportError, match="that nobody has edited"):
        write_onefile(plan, repository)
    assert write_onefile(plan, repository, force=True).changed


@pytest.mark.parametrize(
    ("source", "asked", "says"),
    [
        ("label", {}, "label, which is an output too"),
        *(("x", {"name": name}, "`name`: got") for name in ("", "a/b", "../up", ".")),
        *(("x", {"stages": stages}, "expected 1 to 2, the stages of made_up") for stages in (0, 3)),
    ],
)
def test_names_and_stages_that_cannot_be_are_refused(
    tmp_path: Path, source: str, asked: dict[str, Any], says: str
) -> None:
    made = cascade([1, 1], 2)
    put_slicing(tmp_path, made)
    made = dataclasses.replace(made, inputs=(dataclasses.replace(made.input, name=source),))
    with pytest.raises(ExportError, match=says):
        write_onefile(made, tmp_path, **asked)


def test_more_weights_than_one_file_holds_are_refused_before_anything_is_put_together() -> None:
    made = cascade([1, 1], 2)
    require_fits({"m0": 10**9, "m1": 10**9}, made)
    with pytest.raises(ExportError, match=r"got 2\.2 GB of weights, most of them in m1, expected less than 2 GB"):
        require_fits({"m0": 2 * 10**8, "m1": 2 * 10**9}, made)


def test_the_command_writes_says_so_and_says_when_there_was_nothing_to_do(tmp_path: Path) -> None:
    arguments = ["onefile", str(DIGITS), "--repository", str(REPOSITORY), "--output", str(tmp_path)]
    first = CliRunner().invoke(app, arguments)
    assert first.exit_code == 0, first.output
    assert "digits_cascade_onefile: 3 stages, digits_small, digits_medium, digits_large" in " ".join(
        first.stdout.split()
    )
    second = CliRunner().invoke(app, [*arguments, "--json"])
    value = json.loads(second.stdout)
    assert (value["name"], value["changed"], value["stages"]) == ("digits_cascade_onefile", False, 3)
    prefix = CliRunner().invoke(app, [*arguments, "--stages", "1"])
    assert (tmp_path / "digits_cascade_lead" / "1" / "model.onnx").is_file(), prefix.output


def test_the_command_takes_the_folder_of_a_rendered_cascade(tmp_path: Path) -> None:
    arguments = ["onefile", str(DIGITS.parents[1]), "-r", str(REPOSITORY), "-o", str(tmp_path)]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    missing = CliRunner().invoke(app, ["onefile", str(tmp_path / "nothing.json")])
    assert isinstance(missing.exception, CommitteeError)
    assert ONEFILE_KEY in {
        p.key for p in onnx.load(tmp_path / "digits_cascade_onefile/1/model.onnx").metadata_props
    }
