import json
from pathlib import Path
from typing import Any

import pytest

from export.zoo import ZOO
from orchestrator import local
from orchestrator.errors import MemberError
from orchestrator.local import LocalMembers
from orchestrator.pbtxt import config_from_text
from orchestrator.spec import Manifest, manifest_from_path
from perf.routes.recipes import COMMITTED
from perf.studies.gpu.command import FamilyName, windows_of
from perf.studies.gpu.device import CPU, CUDA, Device
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


MEMBER = "digits_small"


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
