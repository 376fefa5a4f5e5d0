"""Which version of a member is meant, and what is noticed when it is no longer there."""

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from orchestrator.spec import Member, planned_models
from orchestrator.spec.planned_models import PlannedModel

RIGHT, OTHER = b"the weights", b"others, alas"


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def member(**changes: object) -> Member:
    return Member(**{"name": "small", "output": "logits", "sha256": sha(RIGHT), **changes})


def put(repository: Path, version: int, data: bytes, name: str = "model.onnx") -> Path:
    path = repository / "small" / str(version) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def serving(*versions: int) -> planned_models.Ready:
    return lambda name, version: bool(versions) if version is None else version in versions


def test_a_named_version_is_asked_and_other_folders_are_no_concern(tmp_path: Path) -> None:
    put(tmp_path, 1, RIGHT)
    put(tmp_path, 2, OTHER)
    model = PlannedModel(member(version=1), tmp_path)
    assert model.fault(serving(1)) is None
    assert model.version == 1


def test_the_fitted_file_in_another_folder_does_not_help_a_named_version(tmp_path: Path) -> None:
    put(tmp_path, 1, OTHER)
    put(tmp_path, 2, RIGHT)
    assert "not the file" in str(PlannedModel(member(version=1), tmp_path).fault())


def test_a_named_version_that_is_not_ready_is_a_fault_whatever_else_is(tmp_path: Path) -> None:
    put(tmp_path, 1, RIGHT)
    put(tmp_path, 2, RIGHT)
    assert "version 1 is not ready" in str(PlannedModel(member(version=1), tmp_path).fault(serving(2)))


@pytest.mark.parametrize(
    ("right", "ready", "expected"), [((1, 2), (1, 2), 2), ((1,), (1, 2), 1), ((1, 2), (1,), 1), ((2,), (2,), 2)]
)
def test_without_a_named_version_the_newest_ready_one_with_the_fitted_file_is_asked(
    tmp_path: Path, right: tuple[int, ...], ready: tuple[int, ...], expected: int
) -> None:
    for version in (1, 2):
        put(tmp_path, version, RIGHT if version in right else OTHER)
    model = PlannedModel(member(), tmp_path)
    assert model.fault() is None
    assert model.fault(serving(*ready)) is None
    assert model.version == expected


def test_a_fitted_file_that_is_not_served_is_a_fault(tmp_path: Path) -> None:
    put(tmp_path, 1, OTHER)
    put(tmp_path, 2, RIGHT)
    model = PlannedModel(member(), tmp_path)
    assert model.fault() is None
    assert model.fault(serving(1)) is not None


def test_the_version_once_taken_is_kept_when_a_newer_one_comes(tmp_path: Path) -> None:
    put(tmp_path, 1, RIGHT)
    model = PlannedModel(member(), tmp_path)
    assert model.fault(serving(1)) is None
    put(tmp_path, 2, RIGHT)
    assert model.fault(serving(1, 2)) is None
    assert model.version == 1


def test_weights_beside_the_model_file_count_as_its_own(tmp_path: Path) -> None:
    put(tmp_path, 1, RIGHT)
    beside = put(tmp_path, 1, RIGHT, "model.onnx.data")
    model = PlannedModel(member(version=1, data_files={"model.onnx.data": sha(RIGHT)}), tmp_path)
    assert model.fault() is None
    beside.write_bytes(OTHER)
    assert "model.onnx.data is not the file" in str(model.fault())
    beside.write_bytes(RIGHT)
    assert model.fault() is None
    beside.unlink()
    assert "model.onnx.data is gone" in str(model.fault())


def test_other_bytes_of_the_same_size_and_date_are_noticed(tmp_path: Path) -> None:
    path = put(tmp_path, 1, RIGHT)
    dates = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    model = PlannedModel(member(version=1), tmp_path)
    assert model.fault() is None
    path.write_bytes(RIGHT[::-1])
    os.utime(path, ns=dates)
    assert "not the file" in str(model.fault())


def test_a_file_is_read_again_only_when_it_may_have_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(tmp_path, 1, RIGHT)
    read: list[Path] = []
    real = planned_models.sha256_of_path

    def counted(one: Path, **options: Any) -> str:
        read.append(one)
        return real(one, **options)

    monkeypatch.setattr(planned_models, "sha256_of_path", counted)
    model = PlannedModel(member(version=1), tmp_path)
    assert [model.fault() for _ in range(5)] == [None] * 5
    assert len(read) == 1
    path.touch()
    assert [model.fault() for _ in range(5)] == [None] * 5
    assert len(read) == 2


def test_a_file_that_is_written_while_it_is_read_is_no_longer_the_planned_one(tmp_path: Path) -> None:
    path = put(tmp_path, 1, RIGHT)
    model = PlannedModel(member(version=1), tmp_path)
    assert "being written" in str(model.fault(tick=lambda _: path.write_bytes(RIGHT + OTHER) and None))


def test_a_version_folder_that_vanishes_is_a_fault_even_without_a_hash(tmp_path: Path) -> None:
    path = put(tmp_path, 1, RIGHT)
    model = PlannedModel(member(version=1, sha256=None), tmp_path)
    assert model.fault() is None
    path.unlink()
    path.parent.rmdir()
    assert "version 1 is gone" in str(model.fault(serving(1)))


def test_where_the_repository_cannot_be_seen_readiness_alone_counts(tmp_path: Path) -> None:
    model = PlannedModel(member(version=3), tmp_path / "elsewhere")
    assert not model.is_seen
    assert not model.is_verified
    assert model.fault(serving(3)) is None
    assert "version 3 is not ready" in str(model.fault(serving(1)))


def test_without_hashes_a_version_is_still_asked_for(tmp_path: Path) -> None:
    put(tmp_path, 1, OTHER)
    model = PlannedModel(member(version=1), tmp_path, verify_files=False)
    assert model.fault(serving(1)) is None
    assert model.fault(serving(2)) is not None


def test_a_member_that_was_never_there_is_left_to_its_stage_and_one_that_vanishes_is_not(tmp_path: Path) -> None:
    put(tmp_path, 1, RIGHT)
    model = PlannedModel(member(version=1), tmp_path)
    assert model.fault(serving()) is not None
    assert model.is_left_to_stage
    assert model.fault(serving(1)) is None
    assert model.fault(serving()) is not None
    assert not model.is_left_to_stage


def test_a_stage_that_answers_without_its_member_may_lose_it_but_not_get_another(tmp_path: Path) -> None:
    path = put(tmp_path, 1, RIGHT)
    model = PlannedModel(member(version=1), tmp_path, may_fail=True)
    assert model.fault(serving(1)) is None
    assert model.fault(serving()) is not None
    assert model.is_left_to_stage
    path.write_bytes(OTHER)
    assert model.fault(serving()) is not None
    assert not model.is_left_to_stage
