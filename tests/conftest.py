"""What holds for every test: its processor, how hard the properties try, and that no file waits for the disk.

`quick` is the profile of every tier; tests/test_properties.py, of the slow tier, tries them all with `thorough`.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

import orchestrator  # noqa: F401 - before a test imports ONNX Runtime, whose telemetry it turns off
from orchestrator.spec.processor import instruction_sets, processor_flags

# No deadlines: a slow machine is no fault of the code.
settings.register_profile("quick", max_examples=50, deadline=None)
settings.register_profile("thorough", max_examples=500, deadline=None)
settings.load_profile("quick")

HERE = Path(__file__).parent
# These need PyTorch, transformers or whole graphs, so they stay out of the tier that takes a minute.
EXPORTING = tuple(
    HERE / place
    for place in (
        *("export", "graphs/test_editing.py"),
        *(
            "perf/studies/test_glyphs_data.py",
            "perf/studies/test_trained.py",
            "perf/studies/test_text.py",
            "perf/studies/test_text_members.py",
        ),
    )
)


def pytest_report_header() -> str:
    """Which instructions quantised members ran on, for their answers may depend on it."""
    emulated = "emulated without VNNI too" if shutil.which("qemu-x86_64") else "no qemu-x86_64 to emulate others"
    return f"instruction sets: {' '.join(instruction_sets(processor_flags())) or 'unknown'}; {emulated}"


def is_exporting(path: Path) -> bool:
    return any(place == path or place in path.parents for place in EXPORTING)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    # To read these files only to deselect everything in them would import PyTorch, which takes seconds.
    return True if is_exporting(collection_path) and "not export" in config.option.markexpr else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start servers or export networks come first: of several processes none ends long after others."""
    for item in items:
        if is_exporting(item.path):
            item.add_marker(pytest.mark.export)

    def is_quick(item: pytest.Item) -> bool:
        return not any(item.get_closest_marker(name) for name in ("triton", "export"))

    long = {item.path for item in items if not is_quick(item)}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """What fsync is for, a power cut, is nothing a test can see; hundreds of renderings wait for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield
