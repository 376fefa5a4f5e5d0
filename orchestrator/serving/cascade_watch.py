"""Unloads the cascades of a running server while a member is not as planned, and loads them again afterwards.

The runtime inside the server answers UNAVAILABLE by itself meanwhile. Releases that do not ask Python models if
they are ready would still report the cascade as ready, so `committee serve` unloads it.
"""

from __future__ import annotations

import contextlib
import http.client
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.errors import ServingError, SpecError
from orchestrator.serving.drain import RepositoryControl
from orchestrator.spec import CascadeSpec, cascade_from_path
from orchestrator.spec.cascade_json import PLAN
from orchestrator.spec.planned_models import PlannedModel, planned_models, verifies_hashes
from orchestrator.spec.triton import versions_in

LOOK_S = 1.0
# Pause before a load that failed is tried again, since every try may read gigabytes.
_RETRY_S = 3.0
Versions = Mapping[str, frozenset[int]]


@dataclass
class _Cascade:
    """A cascade that was served with a plan.

    Args:
        spec: the plan.
        members: the plan's, without its fused prefix, in whose place the members can be asked.
        verify: whether files are compared with the plan's hashes.
        is_unloaded: whether this watch has unloaded it.
        to_load: members to load again before it, because the server may have loaded other files, or none.
        retry_s: when to try loading again, on the monotonic clock.
    """

    spec: CascadeSpec
    members: tuple[PlannedModel, ...]
    verify: bool = True
    is_unloaded: bool = False
    to_load: set[str] = field(default_factory=set)
    retry_s: float = 0.0


class CascadeWatch:
    """Compares every loaded cascade with its plan whenever `look` is called.

    Args:
        repository: the repository that is served.
        control: the running server's API.
        tell: called with one line for every cascade that is unloaded or loaded again.
    """

    def __init__(self, repository: Path, control: RepositoryControl, *, tell: Callable[[str], None]) -> None:
        self._repository = repository
        self._control = control
        self._tell = tell
        self._cascades: dict[str, _Cascade] | None = None

    def look(self) -> None:
        """Compares once; does nothing while the server does not answer."""
        with contextlib.suppress(OSError, http.client.HTTPException, ServingError):
            if self._cascades is None:
                found = {name: self._served(name, now) for name, now in self._control.ready_versions().items()}
                self._cascades = {name: cascade for name, cascade in found.items() if cascade is not None}
                for name in (name for name, cascade in self._cascades.items() if not cascade.verify):
                    self._tell(f"{name}: verify_hashes is no, so a member that is replaced is not noticed")
            for name in list(self._cascades):
                self._look_at(name, self._cascades)

    def _served(self, name: str, versions: frozenset[int]) -> _Cascade | None:
        path = self._repository / name / str(max(versions, default=0)) / PLAN
        if not path.is_file():
            return None
        try:
            spec, verify = cascade_from_path(path), verifies_hashes(self._control.config(name))
        except SpecError:  # changed since the server read it
            return None
        return _Cascade(spec, self._members(spec, verify), verify)

    def _members(self, spec: CascadeSpec, verify: bool) -> tuple[PlannedModel, ...]:
        return planned_models(spec, self._repository, verify_files=verify)[: len(spec.members)]

    def _read_again(self, name: str, cascade: _Cascade) -> None:
        """Reads the plan again, since a new plan is one way to end the fault."""
        folder = self._repository / name
        with contextlib.suppress(SpecError):
            spec = cascade_from_path(folder / str(max(versions_in(folder), default=0)) / PLAN)
            if spec != cascade.spec:
                cascade.spec, cascade.members = spec, self._members(spec, cascade.verify)

    def _look_at(self, name: str, cascades: dict[str, _Cascade]) -> None:
        cascade = cascades[name]
        if cascade.is_unloaded:
            cascades[name] = self._brought_back(name, cascade)
            return
        loaded = self._control.ready_versions()
        wrong = _faults(cascade, loaded) if loaded.get(name) else {}
        if wrong:
            self._control.unload([name])
            cascade.is_unloaded = True
            cascade.to_load = {one for one in wrong if one not in cascades}
            texts = (f"member {one} is not as planned: {text}" for one, text in wrong.items())
            self._tell(f"{name} is unloaded until that is mended: {'; '.join(texts)}")

    def _brought_back(self, name: str, cascade: _Cascade) -> _Cascade:
        """Loads a cascade again once its members are as planned, after those members that were not."""
        self._read_again(name, cascade)
        if time.monotonic() < cascade.retry_s or any(member.fault() is not None for member in cascade.members):
            return cascade
        try:
            for member in sorted(cascade.to_load):
                self._control.load(member)
                cascade.to_load.discard(member)
            if _faults(cascade, self._control.ready_versions()):
                return cascade
            self._control.load(name)
        except ServingError:
            cascade.retry_s = time.monotonic() + _RETRY_S
            return cascade
        self._tell(f"{name} is loaded again: all its members are as planned")
        cascade.is_unloaded = False
        return self._served(name, self._control.ready_versions()[name]) or cascade


def _faults(cascade: _Cascade, loaded: Versions) -> dict[str, str]:
    """Member -> what differs from the plan."""

    def ready(name: str, version: int | None) -> bool:
        there = loaded.get(name, frozenset())
        return bool(there) if version is None else version in there

    found = {member: member.fault(ready) for member in cascade.members}
    return {one.name: text for one, text in found.items() if text is not None and not one.is_left_to_stage}
