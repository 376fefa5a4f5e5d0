from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from export.tensorrt.machine import MOUNTED, compose_command, tensorrt_host
from export.tensorrt.options import EngineOptions
from orchestrator.errors import ExportError

TRT = SimpleNamespace(__version__="10.16.1.11")


def packages(**known: Any) -> Any:
    def load(name: str) -> Any:
        found = known.get(name, ModuleNotFoundError(f"No module named {name!r}", name=name))
        if isinstance(found, Exception):
            raise found
        return found

    return load


def no_gpu() -> Any:
    raise ExportError("GPU", got="no NVIDIA driver")


def test_the_package_or_its_bindings_alone_will_do() -> None:
    for name in ("tensorrt", "tensorrt_bindings"):
        machine = tensorrt_host("engine of m", fix="", load=packages(**{name: TRT}), gpu=lambda: "gpu")
        assert (machine.trt, machine.gpu) == (TRT, "gpu")


@pytest.mark.parametrize(
    ("load", "got"),
    [
        (packages(), "got no package tensorrt, expected"),
        (packages(tensorrt=OSError("libnvinfer.so.10: no such file")), "does not load .*libnvinfer"),
        (packages(tensorrt=ImportError("libcudart.so.12: no such file")), "does not load .*libcudart"),
        (packages(tensorrt=TRT), "got no NVIDIA driver, expected"),
    ],
)
def test_what_is_missing_is_one_line_with_the_way_out(load: Any, got: str) -> None:
    with pytest.raises(ExportError, match=rf"engine of m: .*{got}") as caught:
        tensorrt_host("engine of m", fix="run that", load=load, gpu=no_gpu)
    assert str(caught.value).endswith("; run that")


def test_the_compose_command_repeats_every_option_and_mounts_another_output(tmp_path: Path) -> None:
    options = EngineOptions(
        min_rows=2, opt_rows=3, max_rows=4, precision="fp16", tf32=True, version_compatible=True, workspace_mib=9
    )
    new = tmp_path / "new"
    command = compose_command("m", options, repository=MOUNTED, output=new, name="fast", user="1000:1000")
    assert command == (
        f"mkdir -p {new} && docker compose run --rm -v {new}:/output engines m --min 2 --opt 3 --max 4 "
        "--precision fp16 --tf32 --version-compatible --workspace-mib 9 --output /output --name fast"
    )
    there = compose_command("m", options, repository=MOUNTED, output=tmp_path, name="fast", user="1000:1000")
    assert there.startswith("docker compose run ")
