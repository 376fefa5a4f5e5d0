"""Cascades that go and come back with their members, against a server that is a few lines."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import ServingError
from orchestrator.serving import control as control_module
from orchestrator.serving.control import CascadeWatch
from orchestrator.spec import CascadeSpec, InputSpec, Member, Stage, json_from_cascade

RIGHT, OTHER = b"the weights", b"others, alas"


class Control:
    """A server's repository API: loading reads what lies there."""

    def __init__(self, *names: str) -> None:
        self.ready = {name: {1} for name in names}
        self.done: list[str] = []
        self.configs: dict[str, dict[str, Any]] = {}
        self.broken: set[str] = set()
        self.is_down = False

    def ready_versions(self) -> dict[str, frozenset[int]]:
        if self.is_down:
            raise ConnectionRefusedError
        return {name: frozenset(versions) for name, versions in self.ready.items()}

    def config(self, name: str) -> dict[str, Any]:
        return self.configs.get(name, {})

    def unload(self, names: list[str]) -> None:
        for name in names:
            self.done.append(f"unload {name}")
            self.ready[name] = set()

    def load(self, name: str) -> None:
        if name in self.broken:
            raise ServingError(f"load {name}", got="400")
        self.done.append(f"load {name}")
        self.ready[name] = {1}


def put(repository: Path, name: str, data: bytes = RIGHT) -> Path:
    path = repository / name / "1" / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def plan(repository: Path, name: str, *members: str, version: int = 1, **changes: Any) -> None:
    digest = hashlib.sha256(RIGHT).hexdigest()
    made = [
        Member(name=one, output="logits", version=1, sha256=None if one.startswith("inner") else digest)
        for one in members
    ]
    spec = CascadeSpec(
        name=name,
        inputs=(InputSpec(name="x", dtype="FP32", dims=(2,)),),
        classes=2,
        stages=tuple(Stage(members=(one,), threshold=None if one is made[-1] else 0.5) for one in made),
    )
    folder = repository / name / str(version)
    folder.mkdir(parents=True)
    (folder / "cascade.json").write_text(json_from_cascade(dataclasses.replace(spec, **changes)))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for name in ("small", "large"):
        put(tmp_path, name)
    plan(tmp_path, "cascade", "small", "large")
    return tmp_path


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def control() -> Control:
    return Control("small", "large", "cascade", "other")


def watching(repository: Path, control: Any, told: list[str]) -> CascadeWatch:
    return CascadeWatch(repository, control, tell=told.append)


@pytest.fixture
def watch(repository: Path, control: Control, told: list[str]) -> CascadeWatch:
    made = watching(repository, control, told)
    made.look()
    return made


def test_a_cascade_whose_members_are_as_planned_is_left_alone(
    watch: CascadeWatch, control: Control, told: list[str]
) -> None:
    for _ in range(3):
        watch.look()
    assert control.done == told == []


def test_it_goes_with_a_changed_member_and_comes_back_with_the_file_loaded_again(
    watch: CascadeWatch, control: Control, told: list[str], repository: Path
) -> None:
    path = put(repository, "small", OTHER)
    for _ in range(3):
        watch.look()
    assert control.done == ["unload cascade"]
    path.write_bytes(RIGHT)
    for _ in range(3):
        watch.look()
    # The member first: the server may have loaded the other file meanwhile.
    assert control.done == ["unload cascade", "load small", "load cascade"]
    assert len(told) == 2
    assert "cascade is unloaded" in told[0]
    assert "member small is not as planned" in told[0]
    assert "cascade is loaded again" in told[1]
    put(repository, "large", OTHER)
    watch.look()
    assert control.done[-1] == "unload cascade"


def test_a_plan_that_is_rendered_anew_for_the_changed_member_brings_the_cascade_back(
    watch: CascadeWatch, control: Control, told: list[str], repository: Path
) -> None:
    put(repository, "small", OTHER)
    watch.look()
    path = repository / "cascade" / "1" / "cascade.json"
    right, other = (hashlib.sha256(data).hexdigest() for data in (RIGHT, OTHER))
    text = path.read_text()
    path.write_text(text.replace(right, other, 1))
    watch.look()
    assert control.done == ["unload cascade", "load small", "load cascade"]
    assert "cascade is loaded again" in told[-1]


def test_a_member_that_is_unloaded_is_loaded_again_before_the_cascade(
    watch: CascadeWatch, control: Control, told: list[str]
) -> None:
    control.unload(["large"])
    for _ in range(3):
        watch.look()
    assert control.done == ["unload large", "unload cascade", "load large", "load cascade"]
    assert "its version 1 is not ready" in told[0]


def test_a_member_that_does_not_load_is_tried_again_later_and_the_cascade_waits(
    watch: CascadeWatch, control: Control, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_module, "_RETRY_S", 0.0)
    control.broken = {"large"}
    control.unload(["large"])
    for _ in range(3):
        watch.look()
    assert control.done == ["unload large", "unload cascade"]
    control.broken = set()
    watch.look()
    assert control.done[2:] == ["load large", "load cascade"]
    assert len(told) == 2


def test_hashes_are_not_compared_where_the_configuration_says_so(
    repository: Path, control: Control, told: list[str]
) -> None:
    control.configs["cascade"] = {"parameters": {"verify_hashes": {"string_value": "no"}}}
    put(repository, "small", OTHER)
    watch = watching(repository, control, told)
    watch.look()
    assert control.done == []
    control.unload(["small"])
    watch.look()
    assert control.done == ["unload small", "unload cascade"]


def test_a_cascade_within_a_cascade_takes_the_outer_one_along_and_both_come_back(
    repository: Path, control: Control, told: list[str]
) -> None:
    plan(repository, "inner", "small")
    plan(repository, "outer", "inner", "large")
    control.ready |= {"inner": {1}, "outer": {1}}
    watch = watching(repository, control, told)
    watch.look()
    path = put(repository, "small", OTHER)
    for _ in range(3):
        watch.look()
    assert sorted(control.done) == ["unload cascade", "unload inner", "unload outer"]
    path.write_bytes(RIGHT)
    for _ in range(3):
        watch.look()
    after = control.done[3:]
    assert after.index("load inner") < after.index("load outer")
    assert after.count("load inner") == 1


def test_a_server_that_does_not_answer_is_looked_at_the_next_time(
    watch: CascadeWatch, control: Control, repository: Path
) -> None:
    control.is_down = True
    put(repository, "small", OTHER)
    watch.look()
    assert control.done == []
    control.is_down = False
    watch.look()
    assert control.done == ["unload cascade"]


def test_of_a_new_version_of_the_plan_its_own_members_count_and_not_those_of_the_old_one(
    watch: CascadeWatch, control: Control, repository: Path, told: list[str]
) -> None:
    put(repository, "huge")
    plan(repository, "cascade", "small", "huge", version=2)
    control.ready |= {"huge": {1}, "cascade": {2}}
    watch.look()
    control.ready["large"] = set()
    watch.look()
    assert control.done == told == []
    put(repository, "huge", OTHER)
    watch.look()
    assert control.done == ["unload cascade"]


def test_a_cascade_that_is_loaded_later_is_watched_too(
    watch: CascadeWatch, control: Control, repository: Path
) -> None:
    plan(repository, "second", "small", "large")
    control.ready["second"] = {1}
    watch.look()
    put(repository, "large", OTHER)
    watch.look()
    assert sorted(control.done) == ["unload cascade", "unload second"]
