from __future__ import annotations

from orchestrator.spec.triton import (
    EMBEDDED,
    IS_READY_SINCE,
    PINNED,
    QUEUE_POLICY_SINCE,
    RELEASES,
    image_runtimes,
    releases_with,
    runtime_of,
)


def test_what_a_release_can_do_is_said_of_releases_that_exist() -> None:
    assert {EMBEDDED, PINNED, IS_READY_SINCE, QUEUE_POLICY_SINCE} <= set(RELEASES)


def test_every_runtime_in_an_image_has_limits_and_its_releases() -> None:
    for version in image_runtimes():
        limits = runtime_of(version)
        assert limits is not None
        assert limits.opset >= 21
        assert all(RELEASES[name].onnxruntime == version for name in releases_with(version))
    assert runtime_of("9.9.9") is None
    assert releases_with("1.31.1") == ()
