import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from export.zoo import ZOO
from orchestrator import local
from orchestrator.errors import DataError, MemberError, ServingError
from orchestrator.local import LocalMembers
from orchestrator.pbtxt import config_from_text
from orchestrator.spec import Manifest, manifest_from_path
from perf.__main__ import app
from perf.harness.machine import NvidiaGpu
from perf.harness.windows import Journal
from perf.routes.recipes import COMMITTED
from perf.studies.gpu import device
from perf.studies.gpu.command import FamilyName, windows_of
from perf.studies.gpu.device import (
    CPU,
    CUDA,
    TENSORRT,
    Device,
    best_rows_per_s,
    chosen_provider,
    key_of,
    measure_alone,
    preflight,
    provider_list,
)
from perf.studies.gpu.members import (
    EFFICIENTNET,
    FAMILIES,
    VIT,
    GpuLoads,
    GpuSetup,
    ImposedCascade,
    NetworkFamily,
    gpu_config,
    small_families,
    speedup_of,
)
from perf.studies.gpu.run import cells_from, speedup_from_cells
from tests.perf.harness.builders import cell_row, frame_of

MEMBER = "digits_small"
# As `python -m export zoo` prints them, 10^9 multiply-adds a row.
GMAC = {
    "efficientnet_b0": 0.386, "efficientnet_b1": 0.687, "efficientnet_b2": 0.994, "efficientnet_b3": 1.827,
    "efficientnet_b4": 4.394, "efficientnet_b5": 10.266, "efficientnet_b6": 19.068, "efficientnet_b7": 37.746,
    "vit_b16_224": 17.564, "vit_b16_384": 55.484, "vit_l16_224": 61.555, "vit_l16_384": 191.066,
}  # fmt: skip
CASCADES = [(family, cascade) for family in FAMILIES.values() for cascade in family.cascades]


@pytest.mark.parametrize(("family", "cascade"), CASCADES, ids=lambda one: one.name)
def test_the_imposed_mix_leaves_the_published_speedup_in_multiply_adds(
    family: NetworkFamily, cascade: ImposedCascade
) -> None:
    assert speedup_of([GMAC[name] for name in cascade.members], cascade.reach) == pytest.approx(
        family.paper_speedup, rel=0.01
    )


@pytest.mark.parametrize(("family", "cascade"), CASCADES, ids=lambda one: one.name)
def test_every_cascade_ends_in_the_baseline_and_gets_dearer_at_each_stage(
    family: NetworkFamily, cascade: ImposedCascade
) -> None:
    assert cascade.members[-1] == family.baseline
    costs = [GMAC[name] for name in cascade.members]
    assert costs == sorted(costs)
    assert set(cascade.members) <= set(family.sources)
    assert 2 <= len(cascade.members) <= 4


def test_the_families_are_those_of_the_zoo_at_the_size_of_the_largest() -> None:
    assert (EFFICIENTNET.baseline, VIT.baseline) == ("efficientnet_b7", "vit_l16_384")
    for family in FAMILIES.values():
        assert family.image_px == max(ZOO[name].resolution_px for name in family.sources)
    assert set(EFFICIENTNET.sources) == {f"efficientnet_b{number}" for number in range(8)}
    names = [cascade.name for _, cascade in CASCADES]
    assert len(set(names)) == len(names)


def test_the_command_knows_every_family_by_name() -> None:
    assert [one.value for one in FamilyName] == ["all", *FAMILIES]


def test_the_small_families_have_the_same_names_and_claim_nothing(tmp_path: Path) -> None:
    small = small_families(tmp_path)
    assert list(small) == list(FAMILIES)
    for family in small.values():
        assert family.paper_speedup is None
        for source in family.sources.values():
            config = json.loads((Path(source.removeprefix("hf:")) / "config.json").read_text())
            assert config["model_type"] == family.name


def test_every_member_and_the_committee_are_sent_both_loads() -> None:
    cascade, loads = EFFICIENTNET.cascades[3], GpuLoads()
    cells = cells_from(cascade, loads)
    routes = {"member_0", "member_1", "member_2", "committee"}
    assert {(one.route, one.concurrency, one.batch) for one in cells} == {
        (route, *load) for route in routes for load in ((1, 1), (8, 32))
    }
    assert {one.deferral for one in cells} == {0.135}
    assert windows_of((VIT,), loads) == (3 * 3 * 2, 4 * 4)


def test_speedups_are_the_cascades_rate_over_the_last_member_alone() -> None:
    cascade = VIT.cascades[0]

    def cell(route: str, load: tuple[int, int], rate: float, p50_ms: float) -> dict[str, Any]:
        return cell_row(
            route, scenario=cascade.name, concurrency=load[0], batch=load[1], requests_per_s=rate,
            p50_ms=p50_ms, p99_ms=2 * p50_ms,
        )  # fmt: skip

    loads = GpuLoads()
    cells = frame_of(
        cell("member_1", loads.online, 10.0, 100.0), cell("committee", loads.online, 25.0, 30.0),
        cell("member_0", loads.online, 90.0, 11.0), cell("member_1", loads.offline, 1.0, 9.0),
        cell("committee", loads.offline, 3.0, 4.0),
    )  # fmt: skip
    rates = [1000.0, 100.0]
    found = speedup_from_cells(cascade, VIT, cells, loads=loads, macs=[17.6, 191.1], alone=rates)
    assert (found["online_speedup"], found["offline_speedup"]) == (2.5, 3.0)
    assert found["online_ms"] == {
        "cascade_p50_ms": 30.0, "cascade_p99_ms": 60.0, "baseline_p50_ms": 100.0, "baseline_p99_ms": 200.0,
    }  # fmt: skip
    assert found["offline_rows_per_s"] == {"cascade": 96.0, "baseline": 32.0}
    assert found["alone_speedup"] == pytest.approx(0.01 / (0.001 + 0.343 * 0.01))


def test_what_was_not_measured_is_no_figure() -> None:
    found = speedup_from_cells(
        VIT.cascades[0], VIT, frame_of(), loads=GpuLoads(), macs=[1.0, 2.0], alone=[None, None]
    )
    assert (found["online_speedup"], found["offline_speedup"], found["alone_speedup"]) == (None, None, None)


def setup(provider: str, folder: Path, precision: str = "fp16") -> GpuSetup:
    device = Device(provider=provider, active=(), onnxruntime="")
    return GpuSetup(folder=folder, device=device, providers=[], precision=precision, pool=8)


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return manifest_from_path(COMMITTED / MEMBER / "manifest.json")


def test_a_member_on_the_gpu_says_so_where_the_server_looks_first(manifest: Manifest, tmp_path: Path) -> None:
    text = gpu_config(manifest, setup("cuda", tmp_path))
    assert "KIND_GPU" in text
    assert "cudnn_conv_algo_search" in text
    assert "tensorrt" not in text


def test_tensorrt_is_asked_for_by_tritons_names_and_keeps_its_engines_in_the_output(
    manifest: Manifest, tmp_path: Path
) -> None:
    text = gpu_config(manifest, setup("tensorrt", tmp_path))
    (entry,) = config_from_text(
        text, subject="a test"
    ).optimization.execution_accelerators.gpu_execution_accelerator
    cache = str(tmp_path / "tensorrt")
    assert entry.name == "tensorrt"
    # Names of Triton's backend; a session in this process has others.
    assert dict(entry.parameters) == {
        "precision_mode": "FP16",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": cache,
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": cache,
    }


def test_a_member_is_named_after_its_precision(tmp_path: Path) -> None:
    assert setup("cuda", tmp_path).served("vit") == "vit_fp16"
    assert setup("cuda", tmp_path, "fp32").served("vit") == "vit"


def test_members_refuse_a_provider_that_silently_gave_way(monkeypatch: pytest.MonkeyPatch) -> None:
    # What ONNX Runtime does where CUDA's libraries do not load: a warning in the log and the next provider.
    import onnxruntime

    real = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda path, options, providers: real(path, options, providers=[CPU])
    )
    with pytest.raises(MemberError, match=f"got {CPU}, expected {CUDA}"):
        LocalMembers(COMMITTED, [MEMBER], providers=[(CUDA, {"device_id": "0"}), CPU])
    assert LocalMembers(COMMITTED, [MEMBER], providers=local.CPU).classes(MEMBER) == 10


ONLY_CPU = ["AzureExecutionProvider", CPU]
ALL = [TENSORRT, CUDA, CPU]
GPU = NvidiaGpu(name="NVIDIA X100", driver="550.54.15", memory_mib=81559)


class Session:
    def __init__(self, active: list[str]) -> None:
        self.active = active

    def get_providers(self) -> list[str]:
        return self.active

    def run(self, _: Any, feeds: dict[str, Any]) -> list[Any]:
        return [feeds["x"]]


def opening(*active: str) -> Any:
    def open_session(_: bytes, providers: Sequence[Any]) -> Session:
        return Session(list(active))

    return open_session


@pytest.mark.parametrize(
    ("asked", "available", "small", "chosen"),
    [
        ("auto", ALL, False, "cuda"),
        ("auto", ALL, True, "cuda"),
        ("auto", ONLY_CPU, True, "cpu"),
        ("cpu", ALL, True, "cpu"),
        ("tensorrt", ALL, False, "tensorrt"),
    ],
)
def test_a_provider_is_chosen(asked: str, available: list[str], small: bool, chosen: str) -> None:
    assert chosen_provider(asked, available, small=small) == chosen


@pytest.mark.parametrize("asked", ["auto", "cuda", "tensorrt"])
def test_without_cuda_the_refusal_says_what_to_install_and_what_to_try(asked: str) -> None:
    with pytest.raises(ServingError, match=r"CPUExecutionProvider, expected .*onnxruntime-gpu.*--small"):
        chosen_provider(asked, ONLY_CPU, small=False)


def test_large_networks_are_refused_on_a_cpu() -> None:
    with pytest.raises(ServingError, match="add --small"):
        chosen_provider("cpu", ALL, small=False)


@pytest.mark.parametrize(
    ("provider", "active", "fix"),
    [
        ("cuda", (CPU,), r"onnxruntime-gpu\[cuda,cudnn\]"),
        ("tensorrt", (CUDA, CPU), "LD_LIBRARY_PATH"),
        ("tensorrt", (CPU,), "LD_LIBRARY_PATH"),
    ],
)
def test_a_session_that_fell_back_silently_is_refused(provider: str, active: tuple[str, ...], fix: str) -> None:
    with pytest.raises(ServingError, match=rf"fell back to {', '.join(active)}, expected .*{fix}"):
        preflight(provider, [], open_session=opening(*active), find_gpu=lambda: GPU)


def test_a_session_that_cannot_run_is_refused_in_one_line() -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("CUDA failure 35:\n driver too old")

    with pytest.raises(ServingError, match="CUDA failure 35: driver too old") as caught:
        preflight("cuda", [], open_session=broken, find_gpu=lambda: GPU)
    assert "\n" not in str(caught.value)


def test_the_gpu_is_named_with_driver_memory_and_what_is_really_active() -> None:
    device = preflight("cuda", [], open_session=opening(CUDA, CPU), find_gpu=lambda: GPU)
    assert (device.gpu, device.driver, device.memory_mib) == ("NVIDIA X100", "550.54.15", 81559)
    assert f"with {CUDA}, {CPU}" in device.words
    assert "unnamed GPU" in preflight("cuda", [], open_session=opening(CUDA), find_gpu=lambda: None).words


def test_the_real_onnxruntime_passes_on_a_cpu(tmp_path: Path) -> None:
    device = preflight("cpu", provider_list("cpu", precision="fp16", cache=tmp_path))
    assert device.active == (CPU,)
    assert device.words.startswith("no GPU used")


def test_tensorrt_keeps_its_engines_and_falls_back_to_cuda_operator_by_operator(tmp_path: Path) -> None:
    providers = provider_list("tensorrt", precision="fp16", cache=tmp_path)
    assert [name for name, _ in providers] == [TENSORRT, CUDA, CPU]
    assert providers[0][1]["trt_fp16_enable"] == "True"
    assert providers[0][1]["trt_engine_cache_path"] == str(tmp_path)
    assert provider_list("tensorrt", precision="fp32", cache=tmp_path)[0][1]["trt_fp16_enable"] == "False"


def test_the_command_refuses_before_it_makes_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ONLY_CPU)
    result = CliRunner().invoke(app, ["gpu", "--output", str(tmp_path / "out")])
    assert isinstance(result.exception, ServingError)
    assert result.exception.exit_code != 0
    assert not (tmp_path / "out").exists()


def rows_at(numbers: Sequence[int]) -> Any:
    return np.zeros((len(numbers), 1, 8, 8), np.float32)


def measured(journal: Journal, told: list[str]) -> dict[str, str]:
    return measure_alone(
        COMMITTED, [MEMBER], batches=(2, 16), rounds=2, seconds=0.02, providers=[(CPU, {})], rows_at=rows_at,
        journal=journal, progress=told.append,
    )  # fmt: skip


def test_every_batch_size_is_run_and_a_run_that_goes_on_runs_none_again(tmp_path: Path) -> None:
    told: list[str] = []
    journal = Journal(tmp_path / "alone.jsonl", {}, resume=False)
    assert measured(journal, told) == {}
    assert [len(journal.of(key_of(MEMBER, batch))) for batch in (2, 16)] == [2, 2]
    record = journal.of(key_of(MEMBER, 16))[0]
    assert record["rows_per_s"] == pytest.approx(16 * record["requests_per_s"])
    best = best_rows_per_s(journal, MEMBER, (2, 16))
    assert best == max(best_rows_per_s(journal, MEMBER, [batch]) or 0 for batch in (2, 16))
    told.clear()
    again = Journal(tmp_path / "alone.jsonl", {}, resume=True)
    assert measured(again, told) == {}
    assert told == []


def test_a_batch_too_large_for_the_device_is_reported_and_the_smaller_ones_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = device._window

    def window(run: Any, key: str, *, batch: int, **more: Any) -> Any:
        if batch > 8:
            raise RuntimeError("Failed to allocate memory for requested buffer\nof size 4096")
        return real(run, key, batch=batch, **more)

    monkeypatch.setattr(device, "_window", window)
    journal = Journal(tmp_path / "alone.jsonl", {}, resume=False)
    failures = measured(journal, [])
    assert failures == {key_of(MEMBER, 16): "Failed to allocate memory for requested buffer of size 4096"}
    assert best_rows_per_s(journal, MEMBER, (2, 16)) is not None
    assert best_rows_per_s(journal, MEMBER, [16]) is None


@pytest.mark.triton
@pytest.mark.slow  # most of a minute, and what it runs has faster tests of its own
@pytest.mark.timeout(300)
def test_a_small_run_exports_serves_loads_and_reports_and_goes_on_where_it_was(tmp_path: Path) -> None:
    words = ["gpu", "--small", "--provider", "cpu", "--family", "vit", "--output", str(tmp_path)]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    document = json.loads((tmp_path / "results.json").read_text())
    assert document["small"] is True
    assert document["precision"] == "fp16"
    assert document["device"]["active"] == ["CPUExecutionProvider"]
    (comparison,) = document["comparisons"]
    assert comparison["exit_mix"] == "imposed"
    assert comparison["measured_reach"] == pytest.approx([1.0, 0.15], abs=0.03)
    assert comparison["online_speedup"] > 0
    assert comparison["offline_speedup"] > 0
    assert comparison["macs_speedup"] > comparison["alone_speedup"] > 1
    assert comparison["paper_speedup"] is None
    assert len(document["cells"]) == 6
    assert not document["failures"]
    with (tmp_path / "alone.csv").open() as file:
        alone = list(csv.DictReader(file))
    assert {(one["member"], one["batch"]) for one in alone} == {
        (f"tiny_vit_{letter}_fp16", batch) for letter in "ab" for batch in ("4", "8")
    }
    text = (tmp_path / "GPU.md").read_text()
    assert "toy's size" in text
    assert "| tiny_vit_a -> tiny_vit_b | 100.0 %, 15.0 % |" in text
    assert all((tmp_path / "plots" / f"gpu-{name}.png").stat().st_size > 5000 for name in ("alone", "speedups"))

    journal = tmp_path / "full-tiny_vit.jsonl"
    before = journal.read_text()
    assert json.loads(before.splitlines()[1])["requests"] > 0
    other = CliRunner().invoke(app, [*words, "--seconds", "3", "--resume"])
    assert isinstance(other.exception, DataError)
    assert "differs in seconds" in str(other.exception)
    assert journal.read_text() == before
