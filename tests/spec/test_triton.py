"""What is known of Triton's releases, and which versions of a model it serves."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.pbtxt import config_from_text
from orchestrator.repository.index import versions_served
from orchestrator.spec.triton import (
    EMBEDDED,
    IS_READY_SINCE,
    PINNED,
    RELEASES,
    image_runtimes,
    releases_with,
    runtime_of,
    served_versions,
    versions_in,
)

PRESENT = st.sets(st.integers(1, 40), max_size=8)
NUMBERS = st.lists(st.integers(1, 40), max_size=5)


@given(PRESENT, NUMBERS, st.integers(1, 10))
def test_a_policy_says_which_of_the_versions_that_are_there_are_served(
    present: set[int], named: list[int], count: int
) -> None:
    numbers = tuple(sorted(present))
    assert served_versions({}, present) == numbers[-1:]
    assert served_versions({"latest": {"num_versions": count}}, present) == numbers[-count:]
    assert served_versions({"all": {}}, present) == numbers
    assert served_versions({"specific": {"versions": named}}, present) == tuple(sorted(present & set(named)))


@given(PRESENT, NUMBERS.filter(bool), st.integers(1, 10))
def test_a_policy_in_config_pbtxt_says_the_same(
    tmp_path_factory: pytest.TempPathFactory, present: set[int], named: list[int], count: int
) -> None:
    folder = tmp_path_factory.mktemp("model")
    for number in present:
        (folder / str(number)).mkdir()
    listed = ", ".join(map(str, named))
    policies = {
        "": {},
        "version_policy: { all {} }": {"all": {}},
        f"version_policy {{ latest {{ num_versions: {count} }} }}": {"latest": {"num_versions": count}},
        f"version_policy {{ specific {{ versions: [{listed}] }} }}": {"specific": {"versions": named}},
    }
    for text, policy in policies.items():
        config = config_from_text(text, subject="config")
        assert versions_served(folder, config) == served_versions(policy, present)


def test_only_folders_named_by_a_number_are_versions(tmp_path: Path) -> None:
    for name in ("1", "12", "03", "0", "configs", "-2", "2.5", "\u0663", "1a"):
        (tmp_path / name).mkdir()
    (tmp_path / "7").write_text("a file")
    assert versions_in(tmp_path) == (1, 12)
    assert versions_in(tmp_path / "nowhere") == ()


def test_what_a_release_can_do_is_said_of_releases_that_exist() -> None:
    assert {EMBEDDED, PINNED, IS_READY_SINCE} <= set(RELEASES)


def test_every_runtime_in_an_image_has_limits_and_its_releases() -> None:
    for version in image_runtimes():
        limits = runtime_of(version)
        assert limits is not None
        assert limits.opset >= 21
        assert all(RELEASES[name] == version for name in releases_with(version))
    assert runtime_of("9.9.9") is None
    assert releases_with("1.31.1") == ()
