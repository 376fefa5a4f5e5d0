from pathlib import Path
from typing import Any

import pytest

from orchestrator.spec.processor import (
    DOT_PRODUCT_FLAGS,
    instruction_sets,
    lacks_flags,
    members_lacking_flags,
    processor_flags,
)
from orchestrator.spec.shares import evenly_spread

X86 = "processor\t: 0\nmodel name\t: some CPU\nflags\t\t: fpu sse4_1 avx avx2 fma avx512_vnni\n\nprocessor\t: 1\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp\n"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (X86, ("sse4_1", "avx", "avx2", "fma", "avx512_vnni")),
        (ARM, ("asimd", "asimddp")),
        ("nothing of the kind\n", ()),
        ("", ()),
    ],
)
def test_flags_are_read_as_linux_writes_them(tmp_path: Path, text: str, found: tuple[str, ...]) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    assert instruction_sets(processor_flags(path)) == found


def test_a_system_without_cpuinfo_says_nothing(tmp_path: Path) -> None:
    assert processor_flags(tmp_path / "none") == frozenset()


@pytest.mark.parametrize(
    ("needed", "flags", "machine", "lacks"),
    [
        (DOT_PRODUCT_FLAGS, ("avx2",), "x86_64", True),
        (DOT_PRODUCT_FLAGS, ("avx2", "avx_vnni"), "x86_64", False),
        (DOT_PRODUCT_FLAGS, ("asimd",), "aarch64", False),
        (DOT_PRODUCT_FLAGS, (), "x86_64", False),
        ((), ("avx2",), "x86_64", False),
    ],
)
def test_a_processor_lacks_what_a_member_needs_only_where_that_is_known(
    needed: tuple[str, ...], flags: tuple[str, ...], machine: str, lacks: bool
) -> None:
    assert lacks_flags(needed, flags, machine=machine) is lacks


@pytest.mark.parametrize(
    ("extra", "found"),
    [
        ({"recorded_with": {"processor_flags": {"a": ["avx_vnni"], "b": ["avx2"]}}}, ["a"]),
        ({"recorded_with": {"onnxruntime": "1.31.1"}}, []),
        ({}, []),
        ({"recorded_with": "by hand"}, []),
        ({"recorded_with": {"processor_flags": {"a": 7}}}, []),
    ],
)
def test_a_plan_names_members_that_a_processor_answers_otherwise(extra: dict[str, Any], found: list[str]) -> None:
    assert members_lacking_flags(extra, ("avx2",), machine="x86_64") == found


@pytest.mark.parametrize(
    ("count", "most", "places"),
    [(0, 3, []), (1, 3, [0]), (3, 5, [0, 1, 2]), (9, 3, [0, 4, 8]), (10, 4, [0, 3, 6, 9])],
)
def test_places_are_spread_evenly_and_never_repeat(count: int, most: int, places: list[int]) -> None:
    assert evenly_spread(count, most).tolist() == places
