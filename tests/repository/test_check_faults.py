"""What is wrong with a repository is shown where it is, and nothing that is wrong breaks the check itself."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.errors import CommitteeError
from orchestrator.repository.check import check
from orchestrator.repository.render import ensemble_from_cascade, render, render_ensemble, render_member
from orchestrator.spec import cascade_from_path
from tests.repository.faults import FAULTS, TOGETHER, has


@pytest.mark.parametrize("name", FAULTS)
def test_the_report_shows_each_fault_where_it_is(repository: Path, name: str) -> None:
    spoil, model, field, words = FAULTS[name]
    assert check(repository)
    spoil(repository)
    report = check(repository)
    assert not report
    assert has(report, model, field, *words), report.faults
    assert all(len(one.text.splitlines()) == 1 and one.text for one in (*report.faults, *report.notes))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.sets(st.sampled_from(TOGETHER), min_size=2))
def test_every_fault_is_shown_in_one_run(
    made: Path, tmp_path_factory: pytest.TempPathFactory, names: set[str]
) -> None:
    repository = shutil.copytree(made, tmp_path_factory.mktemp("many") / "model_repository")
    for name in sorted(names):
        FAULTS[name][0](repository)
    report = check(repository)
    for name in names:
        _, model, field, words = FAULTS[name]
        assert has(report, model, field, *words), (name, report.faults)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_files_cut_or_flipped_anywhere_never_break_the_check_itself(
    made: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    repository = shutil.copytree(made, tmp_path_factory.mktemp("spoilt") / "model_repository")
    files = sorted(path for path in repository.rglob("*") if path.is_file() and path.stat().st_size)
    path = data.draw(st.sampled_from(files))
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content = content[:place]
    else:
        content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(content))
    report = check(repository)
    if path.name in ("model.onnx", "labels.txt", "model.py") and "together_mean" not in path.parts:
        assert not report


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.integers() | st.floats(-2, 2) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), value=JSON, file=st.sampled_from(["cascade/1/cascade.json", "small/manifest.json"]))
def test_any_value_anywhere_in_a_plan_or_manifest_is_taken_or_is_a_fault(
    made: Path, repository: Path, data: st.DataObject, value: object, file: str
) -> None:
    path = repository / file
    try:
        document = json.loads(path.read_text())
        here: object = document
        keys: list[object] = []
        while isinstance(here, dict | list) and here and (not keys or data.draw(st.booleans())):
            keys.append(data.draw(st.sampled_from(sorted(here) if isinstance(here, dict) else range(len(here)))))
            here = here[keys[-1]]
        parent = document
        for key in keys[:-1]:
            parent = parent[key]
        parent[keys[-1]] = value
        path.write_text(json.dumps(document))
        check(repository)
        with contextlib.suppress(CommitteeError):
            render_member(repository / "small")
        with contextlib.suppress(CommitteeError):
            spec = cascade_from_path(repository / "cascade" / "1" / "cascade.json")
            render(spec, repository, force=True)
            render_ensemble(ensemble_from_cascade(spec, "together"), repository)
    finally:
        shutil.rmtree(repository)
        shutil.copytree(made, repository)


def test_classes_that_the_file_leaves_free_but_its_operators_fix_are_those_of_the_config(repository: Path) -> None:
    path = repository / "small" / "1" / "model.onnx"
    model = onnx.load(path)
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "classes"
    path.write_bytes(model.SerializeToString())
    # ONNX Runtime infers the axis when it loads the file, and Triton compares with that.
    assert onnxruntime.InferenceSession(path).get_outputs()[0].shape == ["n", 3]
    report = check(repository)
    assert not has(report, "small", "config.pbtxt output logits"), report.faults
