import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from export.tensorrt.in_image import PACKAGES, bindings_for, library_version

ROOT = Path(__file__).parents[3]


class Library:
    def __init__(self, version: int) -> None:
        self._version = version

    def getInferLibVersion(self) -> int:  # noqa: N802
        return self._version


def libraries(**known: Any) -> Any:
    def load(name: str) -> Any:
        stem = name.replace(".so.", "_")
        if stem not in known:
            raise OSError(f"{name}: cannot open shared object file")
        return known[stem]

    return load


@pytest.mark.parametrize(
    ("load", "version"),
    [
        (libraries(libnvinfer_10=Library(101601)), (10, 16, 1)),
        (libraries(libnvinfer_11=Library(110400)), (11, 4, 0)),
        (libraries(libnvinfer_8=Library(8601)), None),
        (libraries(), None),
    ],
)
def test_the_release_is_that_of_the_library_the_image_loads(load: Any, version: Any) -> None:
    assert library_version(load) == version


def test_bindings_are_of_the_same_release_and_of_the_images_cuda() -> None:
    new = libraries(libcudart_13=object())
    assert bindings_for((11, 4, 0), new) == ["tensorrt-cu13-bindings==11.4.0.*", "tensorrt-cu13-bindings==11.4.*"]
    assert bindings_for((10, 3, 0), libraries())[0] == "tensorrt-cu12-bindings==10.3.0.*"


def test_the_container_gets_what_the_project_depends_on() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    block = re.search(r"^dependencies = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    assert block
    assert tuple(re.findall(r'^  "(.*)",$', block[1], re.MULTILINE)) == PACKAGES


def test_building_engines_needs_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; sys.modules |= dict.fromkeys(['torch', 'transformers', 'sklearn', 'scipy', 'PIL'])\n"
        "import export.__main__, export.tensorrt.member"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
