import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tritonclient.grpc import model_config_pb2 as pb

from export.tensorrt.engine import EngineOptions
from export.tensorrt.machine import Gpu, TensorrtHost, tensorrt_host
from export.tensorrt.member import EngineResult, export_engine
from orchestrator.errors import ExportError, RepositoryError
from orchestrator.local import LocalMembers
from orchestrator.pbtxt import config_from_path
from orchestrator.repository.check import check
from orchestrator.spec import TensorSpec, manifest_from_path
from orchestrator.spec.manifest import json_from_manifest
from tests.fakes.cuda import FakeCudaDriver
from tests.fakes.tensorrt import FakeTensorRT
from tests.onnx_models import model_of
from tests.repository.builders import add_member, linear_model, snapshot

ROOT = Path(__file__).parents[3]
OPTIONS = EngineOptions(min_rows=1, opt_rows=4, max_rows=16)


def export(
    repository: Path, trt: FakeTensorRT | None = None, member: str = "small", **changes: Any
) -> EngineResult:
    """An export on a machine with a fake TensorRT and a fake GPU."""
    driver = changes.pop("driver", None) or FakeCudaDriver()
    options = changes.pop("options", OPTIONS)
    machine = TensorrtHost(trt or FakeTensorRT(), Gpu(driver.load))
    done = export_engine(member, repository, options=options, find_machine=lambda *_, **__: machine, **changes)
    assert not driver.memory, "GPU memory was not given back"
    return done


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    add_member(tmp_path, "small")
    return tmp_path


def test_an_engine_is_a_member_with_the_same_tensors_and_the_profiles_batch(repository: Path) -> None:
    done = export(repository)
    member, engine = (manifest_from_path(repository / name / "manifest.json") for name in ("small", "small_trt"))
    assert done == EngineResult(folder=repository / "small_trt", built=True, manifest=engine)
    assert (engine.input, engine.output, engine.macs) == (member.input, member.output, member.macs)
    assert (engine.file, engine.opset, engine.precision) == ("1/model.plan", None, "fp32")
    assert engine.max_batch_size == 16
    facts = engine.engine
    assert facts["profile"] == {"min": 1, "opt": 4, "max": 16}
    assert (facts["tensorrt"], facts["compute_capability"], facts["device"]) == ("10.16.1.11", "9.0", "Fake GPU")
    assert (facts["strongly_typed"], facts["flags"], facts["cuda"]) == (True, [], "13.3")
    assert engine.parity["rows"] >= 64
    assert engine.parity["batches"] == [1, 2, 4, 7, 16]
    assert engine.parity["max_abs"] < 1e-5
    assert engine.versions["tensorrt"] == "10.16.1.11"


def test_the_config_serves_it_on_the_gpu_warmed_up_at_both_ends_of_the_profile(repository: Path) -> None:
    export(repository)
    config = config_from_path(repository / "small_trt" / "config.pbtxt")
    assert (config.backend, config.max_batch_size) == ("tensorrt", 16)
    assert [group.kind for group in config.instance_group] == [pb.ModelInstanceGroup.KIND_GPU]
    assert [warm.batch_size for warm in config.model_warmup] == [1, 16]
    assert (config.input[0].name, config.output[0].name) == ("x", "logits")
    report = check(repository)
    assert report, report.faults
    assert not report.notes


def test_a_config_that_asks_more_of_an_engine_than_it_has_is_found_and_an_edited_one_is_kept(
    repository: Path,
) -> None:
    export(repository)
    path = repository / "small_trt" / "config.pbtxt"
    text = path.read_text()
    path.write_text(text.replace("max_batch_size: 16", "max_batch_size: 32").replace("dims: 4", "dims: 5", 1))
    faults = str(check(repository).faults)
    assert "got 32, expected at most the engine's 16" in faults
    assert "got dims [5], expected [4] as in manifest.json" in faults
    done = export(repository, force=True)
    assert any("edited by hand and is kept" in note for note in done.notes)
    assert "max_batch_size: 32" in path.read_text()


def test_the_build_gets_one_profile_and_the_flags_that_were_asked_for(repository: Path) -> None:
    trt = FakeTensorRT()
    export(repository, trt)
    (build,) = trt.builds
    assert build["profile"] == {"x": ((1, 4), (4, 4), (16, 4))}
    assert (build["flags"], build["strongly_typed"], build["workspace"]) == ([], True, None)
    options = dataclasses.replace(OPTIONS, tf32=True, version_compatible=True, workspace_mib=512)
    done = export(repository, trt, options=options)
    assert (trt.builds[1]["flags"], trt.builds[1]["workspace"]) == (["TF32", "VERSION_COMPATIBLE"], 512 << 20)
    assert any("version-compatible=true" in note for note in done.notes)


def test_every_batch_that_is_compared_lies_in_the_profile(repository: Path) -> None:
    trt = FakeTensorRT()
    export(repository, trt, options=EngineOptions(min_rows=3, opt_rows=8, max_rows=100))
    assert sorted(set(trt.asked)) == [3, 7, 8, 33, 100]


def test_a_profile_that_starts_above_one_row_is_warmed_up_there_and_warned_of(repository: Path) -> None:
    done = export(repository, options=EngineOptions(min_rows=2, opt_rows=4, max_rows=8))
    config = config_from_path(repository / "small_trt" / "config.pbtxt")
    assert [warm.batch_size for warm in config.model_warmup] == [2, 8]
    assert any("fewer than 2 rows" in note for note in done.notes)


def test_a_second_run_does_nothing_and_another_option_device_release_or_a_damaged_plan_builds_again(
    repository: Path,
) -> None:
    trt = FakeTensorRT()
    assert export(repository, trt).built
    before = snapshot(repository)
    assert not export(repository, trt).built
    assert (len(trt.builds), snapshot(repository)) == (1, before)
    assert export(repository, trt, options=dataclasses.replace(OPTIONS, opt_rows=5)).built
    assert export(repository, trt).built
    assert export(repository, trt, driver=FakeCudaDriver(name="Other GPU")).built
    assert export(repository, FakeTensorRT("11.4.0.106")).built
    assert not export(repository, FakeTensorRT("11.4.0.106")).built
    plan = repository / "small_trt" / "1" / "model.plan"
    plan.write_bytes(plan.read_bytes()[:-5])
    assert "model.plan is another file" in str(check(repository).faults)
    assert export(repository, FakeTensorRT("11.4.0.106")).built
    assert export(repository, FakeTensorRT("11.4.0.106"), force=True).built


def test_members_share_the_timing_cache_of_their_gpu_and_a_foreign_one_is_replaced(repository: Path) -> None:
    add_member(repository, "large", seed=1)
    assert not export(repository).manifest.engine["timing_cache_used"]
    done = export(repository, member="large")
    assert done.manifest.engine["timing_cache_used"]
    cache = repository / done.manifest.engine["timing_cache"]
    assert cache.name == ".tensorrt-timing-10.16.1.11-sm90.cache"
    cache.write_bytes(b"of another machine")
    assert not export(repository, force=True).manifest.engine["timing_cache_used"]
    assert export(repository, force=True).manifest.engine["timing_cache_used"]


@pytest.mark.parametrize(
    ("trt", "error", "says"),
    [
        (FakeTensorRT(interrupt=True), KeyboardInterrupt, "^$"),
        (FakeTensorRT(build_error="Could not find any implementation for node w"), ExportError, "implementation"),
        (FakeTensorRT(cut=3), ExportError, "cut short"),
        (FakeTensorRT(noise=0.5), ExportError, r"batch 1: differs by 0\.5; batch 2: .*batch 32: differs"),
        (FakeTensorRT(noise=float("nan")), ExportError, "differs by nan"),
        (FakeTensorRT(output="scores"), ExportError, "outputs scores for logits"),
        (FakeTensorRT(gpu=False), ExportError, "CUDA initialization failure"),
    ],
)
def test_a_build_that_ends_early_or_cannot_be_proven_leaves_the_old_engine(
    repository: Path, trt: FakeTensorRT, error: type[BaseException], says: str
) -> None:
    export(repository)
    before = snapshot(repository)
    with pytest.raises(error, match=says) as caught:
        export(repository, trt, options=dataclasses.replace(OPTIONS, max_rows=32))
    after = snapshot(repository)
    assert after == before
    assert "\n" not in str(caught.value)


def test_a_failed_first_build_leaves_no_folder(repository: Path) -> None:
    # What the parser refuses is named at once.
    errors = [("Resize", "up", "antialias is not supported"), ("", "", "no such type")]
    expected = r"got Resize up: antialias is not supported; model: no such type, expected operators TensorRT has"
    with pytest.raises(ExportError, match=expected):
        export(repository, FakeTensorRT(parser_errors=errors))
    with pytest.raises(ExportError, match="out of memory"):
        export(repository, FakeTensorRT(build_error="out of memory"))
    assert not (repository / "small_trt").exists()


def test_an_onnx_file_with_a_fixed_batch_is_refused(repository: Path) -> None:
    add_member(repository, "fixed", model=linear_model(0, batch=8))
    with pytest.raises(ExportError, match=r"inputs of fixed: got x \[8, 4\], expected x \[-1, 4\]"):
        export(repository, member="fixed")


def test_precision_is_the_members_or_fp16_of_fp32_where_tensorrt_still_chooses_types(repository: Path) -> None:
    fp16 = dataclasses.replace(OPTIONS, precision="fp16")
    trt = FakeTensorRT()
    done = export(repository, trt, options=fp16)
    assert (done.manifest.precision, done.manifest.engine["strongly_typed"]) == ("fp16", False)
    assert (trt.builds[0]["flags"], trt.builds[0]["strongly_typed"]) == (["FP16"], False)
    with pytest.raises(ExportError, match=r"TensorRT 11\.4\.0\.106, .*export it first .*--precision fp16"):
        export(repository, FakeTensorRT("11.4.0.106"), options=fp16)
    add_member(repository, "half", precision="fp16")
    done = export(repository, FakeTensorRT("11.4.0.106"), member="half")
    assert (done.manifest.precision, done.manifest.engine["strongly_typed"]) == ("fp16", True)


@pytest.mark.parametrize(
    ("own", "asked"), [("fp32", "int8"), ("fp16", "fp32"), ("int8", "fp16"), ("fp16", "int8")]
)
def test_other_precisions_need_a_member_that_has_them(repository: Path, own: str, asked: str) -> None:
    add_member(repository, "member", precision=own)
    with pytest.raises(ExportError, match=rf"engine of member in {asked}: .*--precision {asked}"):
        export(repository, member="member", options=dataclasses.replace(OPTIONS, precision=asked))


def test_releases_before_10_are_refused(repository: Path) -> None:
    with pytest.raises(ExportError, match=r"tensorrt: got version 8\.6\.1, expected 10 or later"):
        export(repository, FakeTensorRT("8.6.1"))


def test_a_uint8_image_goes_in_as_it_is(repository: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["image"], ["preprocess/image"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["preprocess/image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["logits"]),
    ]
    weights = {"w": np.eye(12, 3, dtype=np.float32) / 255}
    model = model_of(nodes, {"image": (TensorProto.UINT8, ["n", 3, 2, 2])}, {"logits": ["n", 3]}, weights)
    add_member(
        repository, "picture", model=model, inputs=(TensorSpec(name="image", dtype="UINT8", dims=(3, 2, 2)),)
    )
    export(repository, member="picture")
    config = config_from_path(repository / "picture_trt" / "config.pbtxt")
    assert config.input[0].data_type == pb.TYPE_UINT8


def test_weights_in_files_of_their_own_are_found_and_checked(repository: Path) -> None:
    folder = repository / "apart"
    (folder / "1").mkdir(parents=True)
    path = folder / "1" / "model.onnx"
    onnx.save(linear_model(3), str(path), save_as_external_data=True, location="w.data", size_threshold=0)
    small = manifest_from_path(repository / "small" / "manifest.json")
    own, data = (hashlib.sha256(file.read_bytes()).hexdigest() for file in (path, folder / "1" / "w.data"))
    manifest = dataclasses.replace(small, name="apart", sha256=own, data_files={"1/w.data": data})
    (folder / "manifest.json").write_text(json_from_manifest(manifest))
    done = export(repository, member="apart")
    assert not done.manifest.data_files
    (folder / "1" / "w.data").write_bytes(b"something else")
    with pytest.raises(ExportError, match=r"w\.data: got sha256"):
        export(repository, member="apart")


def test_names_that_are_taken_unknown_or_no_onnx_member_are_refused(repository: Path) -> None:
    export(repository)
    theirs = repository / "theirs" / "1"
    theirs.mkdir(parents=True)
    (theirs / "model.plan").write_bytes(b"theirs")
    refused: list[tuple[dict[str, Any], str]] = [
        ({"member": "nobody"}, r"member nobody .*expected one of small, small_trt"),
        ({"member": "small_trt"}, r"got model file 1/model\.plan, expected an ONNX member"),
        ({"name": "small"}, "called small, expected no such model"),
        ({"name": "small", "force": True}, "the member's own name"),
        ({"name": "theirs"}, "not exported here"),
    ]
    for asked, says in refused:
        with pytest.raises(ExportError, match=says):
            export(repository, **asked)
    (repository / "small" / "1" / "model.onnx").write_bytes(b"cut")
    with pytest.raises(ExportError, match=r"model\.onnx: got sha256"):
        export(repository, force=True)


def test_another_output_and_name_leave_the_members_repository_alone(repository: Path, tmp_path: Path) -> None:
    before = snapshot(repository)
    done = export(repository, output=tmp_path / "engines", name="fast")
    assert done.folder == tmp_path / "engines" / "fast"
    assert check(tmp_path / "engines")
    assert snapshot(repository).items() >= before.items()


def test_an_engine_asked_for_in_this_process_says_where_to_ask(repository: Path) -> None:
    export(repository)
    with pytest.raises(RepositoryError, match=r"member small_trt: got a TensorRT engine.*name small"):
        LocalMembers(repository, ["small_trt"])


def run(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "export", "tensorrt", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


def test_without_the_package_or_a_gpu_the_command_names_the_one_for_compose_and_writes_nothing(
    repository: Path,
) -> None:
    try:
        tensorrt_host("a test", fix="")
    except ExportError:
        pass
    else:
        pytest.skip("this machine has TensorRT and a GPU")
    before = snapshot(repository)
    done = run("small", "--repository", str(repository), "--max", "32", "--precision", "fp16")
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.strip().startswith("error: engine of small: got no ")
    command = f"COMMITTEE_MODELS={repository} docker compose run --rm engines small --min 1 --opt 16 --max 32"
    assert f"{command} --precision fp16\n" in done.stderr
    assert snapshot(repository) == before


def test_all_wrong_options_are_named_in_one_line(repository: Path) -> None:
    done = run("small", "--repository", str(repository), "--min", "4", "--opt", "2", "--precision", "fp8")
    assert done.returncode == 2
    assert "--opt: got 2" in done.stderr
    assert "--precision: got 'fp8'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.gpu
def test_a_real_engine_of_a_digits_member_agrees_with_onnx_runtime(tmp_path: Path) -> None:
    try:
        tensorrt_host("a test", fix="")
    except ExportError as error:
        pytest.skip(f"needs the tensorrt package and a GPU: {error.got}")
    words = ["--repository", str(ROOT / "model_repository"), "-o", str(tmp_path), "--json"]
    done = run("digits_large", "--min", "1", "--opt", "16", "--max", "64", *words)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["parity"]["max_abs"] < 1e-2
    assert check(tmp_path)
    again = json.loads(run("digits_large", "--min", "1", "--opt", "16", "--max", "64", *words).stdout)
    assert not again["built"]
