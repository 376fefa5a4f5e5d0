"""The models of a repository, and a running server's API for them: stopping without losing a request, watching.

On SIGTERM Triton (seen with 24.10) first waits for HTTP connections to end, idle ones too, and then for requests
in flight. Then it refuses the BLS calls of models ("Server not ready"), so a cascade's deferred rows would fail.
So before it, from callers to callees:

- A cascade is told to drain (`orchestrator/probe.py`): it refuses new requests with UNAVAILABLE, finishes those it
  has, says when that is done, and stays loaded, so that clients never see NOT_FOUND.
- Other models are unloaded. They take no new request then, and go when their last one is answered. An idle gRPC
  stream, or a request that its client cancelled at the wrong moment, holds the model of its last request for ever,
  though nothing is in flight. Models that call no others are therefore not waited for long: SIGTERM is safe for
  them, and Triton's log says when they have nothing in flight.

Unloading is possible in explicit control mode only. "poll" would drop a model whose folder disappears, but would
also load half-written files while somebody edits them.

While a member is not as planned, the runtime inside the server answers UNAVAILABLE by itself. Releases that do not
ask Python models if they are ready would still report the cascade as ready, so `committee serve` unloads it then,
and loads it again afterwards.
"""

import contextlib
import http.client
import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tritonclient.grpc.model_config_pb2 import ModelConfig

from orchestrator.errors import RepositoryError, ServingError, SpecError
from orchestrator.pbtxt import CONFIG, config_from_path
from orchestrator.serving.machine import CONTROL_HEADER
from orchestrator.spec import CascadeSpec, cascade_from_path
from orchestrator.spec.cascade import PLAN
from orchestrator.spec.planned_models import PlannedModel, planned_models, verifies_hashes
from orchestrator.spec.triton import BACKEND_OF_FILE, ENSEMBLE, PINNED, backend_of, mentioned_models, versions_in
from orchestrator.spec.validation import NAME

_POLL_S = 0.05
# Longest wait for models that call no others to go, after which they may be held by an idle stream.
_HELD_S = 2.0
# Loading gigabytes takes minutes, and Triton answers when the model is loaded.
_LOAD_S = 600.0
LOOK_S = 1.0  # how often members are looked at
# Pause before a load that failed is tried again, since every try may read gigabytes.
_RETRY_S = 3.0
SERVED = ("onnxruntime", "python")
# The same release as docker-compose.yml.
IMAGE = f"nvcr.io/nvidia/tritonserver:{PINNED}-py3"
Versions = Mapping[str, frozenset[int]]


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """One model folder."""

    name: str
    backend: str | None  # "ensemble" for Triton's own pipelines, None where it is unknown
    calls: tuple[str, ...] = ()  # models that it may call while it answers
    own_backend: bool = False  # whether its folder holds its backend's library
    is_cascade: bool = False  # whether our runtime answers for it, which can drain


def scan_repository(repository: Path) -> tuple[ModelEntry, ...]:
    """Every model of a repository, by name.

    Raises:
        RepositoryError: the folder is missing, not readable or empty, or a config.pbtxt is malformed.
    """
    fix = "name a model repository with `repository`"
    expected = "a folder with one sub-folder per model"
    try:
        if not repository.exists():
            raise RepositoryError(f"{repository} does not exist", expected=expected, fix=fix)
        if not repository.is_dir():
            raise RepositoryError(f"{repository}", got="a file", expected=expected, fix=fix)
        folders = sorted(path for path in repository.iterdir() if path.is_dir() and not path.name.startswith("."))
        models = tuple(_entry(folder, [other.name for other in folders]) for folder in folders)
    except OSError as error:
        fix = "give this user read access to everything in it"
        raise RepositoryError(f"{error.filename}", got=error.strerror, expected="to read it", fix=fix) from error
    if not models:
        raise RepositoryError(f"{repository}", got="no model in it", expected=expected, fix=fix)
    return models


def check_models(models: Sequence[ModelEntry], repository: Path) -> None:
    """Refuses models that the embedded server cannot run.

    Raises:
        RepositoryError: with the names of all such models.
    """
    # The python backend passes the model's path to a shell without quoting (see `shell_safe_repository`).
    unsafe = [repr(model.name) for model in models if not NAME.match(model.name)]
    if unsafe:
        expected = "model folders named with letters, digits, '_', '.' and '-'"
        raise RepositoryError(f"{repository}", got=", ".join(unsafe), expected=expected, fix="rename them")
    lacking = [model for model in models if not (model.own_backend or model.backend in (None, ENSEMBLE, *SERVED))]
    if lacking:
        got = ", ".join(f"model {model.name} with backend {model.backend}" for model in lacking)
        expected = f"backends the embedded server has ({', '.join(SERVED)}, and ensembles)"
        fix = f"serve them with NVIDIA's image, {IMAGE}: make compose && docker compose up -d triton"
        raise RepositoryError(f"{repository}", got=got, expected=expected, fix=fix)


def _entry(folder: Path, names: list[str]) -> ModelEntry:
    path = folder / CONFIG
    # Triton completes a missing one from the model file, and may know fields that the client's package does not.
    config = config_from_path(path, unknown_fields=True) if path.exists() else ModelConfig()
    backend = backend_of(config.backend, config.platform) or _backend_by_file(folder, config)
    calls: tuple[str, ...] = ()
    if backend in ("python", ENSEMBLE):
        calls = mentioned_models(folder, [name for name in names if name != folder.name])
    own = bool(config.backend) and any(folder.glob(f"**/libtriton_{config.backend}.so"))
    is_cascade = backend == "python" and any(folder.glob(f"*/{PLAN}"))
    return ModelEntry(name=folder.name, backend=backend, calls=calls, own_backend=own, is_cascade=is_cascade)


def _backend_by_file(folder: Path, config: ModelConfig) -> str | None:
    names = [*filter(None, [config.default_model_filename]), *BACKEND_OF_FILE]
    there = (name for name in names if any((folder / str(v) / name).exists() for v in versions_in(folder)))
    return BACKEND_OF_FILE.get(next(there, ""))


def drain_waves(models: Sequence[ModelEntry]) -> list[list[str]]:
    """Names of the models to unload, in waves: no model is called by one of a later wave.

    Models that may call others, ensembles and Python models, come first, then the rest. A cycle goes in one wave.
    """
    callers = {model.name: model for model in models if model.backend in ("python", ENSEMBLE)}
    rest = sorted(model.name for model in models if model.name not in callers)
    waves = []
    while callers:
        called = {name for model in callers.values() for name in model.calls}
        wave = sorted(name for name in callers if name not in called) or sorted(callers)
        waves.append(wave)
        for name in wave:
            del callers[name]
    return [*waves, rest] if rest else waves


@dataclass(frozen=True, kw_only=True)
class RepositoryControl:
    """Triton's repository API over HTTP, with the header that the server requires."""

    host: str
    port: int
    key: str
    timeout_s: float = 10.0

    def server_version(self) -> str:
        """The version of a server that is ready; ServingError for one that is not yet."""
        self._ask("GET", "/v2/health/ready")
        return str(self._ask("GET", "/v2")["version"])

    def unload(self, names: Iterable[str]) -> None:
        """Starts unloading models; requests that were accepted are still answered."""
        for name in names:
            self._ask("POST", f"/v2/repository/models/{name}/unload")

    def load(self, name: str) -> None:
        """Loads a model, or loads it again from its files; ServingError where it does not load."""
        self._ask("POST", f"/v2/repository/models/{name}/load", timeout_s=_LOAD_S)

    def config(self, name: str) -> dict[str, Any]:
        """The configuration with which a model is served, as JSON values."""
        return dict(self._ask("GET", f"/v2/models/{name}/config"))

    def ready_versions(self) -> dict[str, frozenset[int]]:
        """Model -> numbers of the versions that would answer now."""
        found: dict[str, frozenset[int]] = {}
        for model in self.index():
            ready = {int(model["version"])} if model.get("state") == "READY" else set()
            found[model["name"]] = found.get(model["name"], frozenset()) | ready
        return found

    def index(self) -> list[dict[str, str]]:
        """An entry for every version of every model: name, version, and its state such as READY or UNLOADING."""
        return list(self._ask("POST", "/v2/repository/index"))

    def _ask(self, method: str, path: str, *, timeout_s: float | None = None) -> Any:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout_s or self.timeout_s)
        try:
            sent = "{}" if method == "POST" else None
            connection.request(method, path, body=sent, headers={CONTROL_HEADER: self.key})
            response = connection.getresponse()
            body = response.read()
            if response.status != 200:
                raise ServingError(
                    f"Triton refused {path}", got=f"{response.status} {body.decode(errors='replace')}"
                )
            return json.loads(body) if body else None
        finally:
            connection.close()


def drain(
    control: RepositoryControl,
    models: Sequence[ModelEntry],
    *,
    drain_cascades: Callable[[list[str]], list[str]],
    deadline_s: float,
    reloaded: Collection[str] = (),
    is_busy: Callable[[list[str]], bool] = lambda _: False,
) -> bool:
    """Lets models finish, wave after wave, each when the one before has answered all its requests.

    Args:
        control: the server's.
        models: all of its models.
        drain_cascades: tells cascades to drain, waits for them, and returns those that do not.
        deadline_s: the last moment, on the monotonic clock.
        reloaded: models that may never go, because a process of theirs has died with requests.
        is_busy: whether some of those still have requests that will be answered.

    Returns:
        Whether all models are known to have nothing in flight.
    """
    cascades = {model.name for model in models if model.is_cascade}
    waves = drain_waves(models)
    all_gone = True
    for wave in waves:
        own = [name for name in wave if name in cascades]
        undrained = drain_cascades(own) if own else []
        names = [name for name in wave if name not in cascades or name in undrained]
        control.unload(names)
        held_s = min(deadline_s, time.monotonic() + _HELD_S)
        until_s = held_s if wave is waves[-1] else deadline_s
        if not _unloaded(control, [name for name in names if name not in reloaded], until_s=until_s):
            return False
        again = [name for name in names if name in reloaded]
        while is_busy(again) and time.monotonic() < until_s:
            time.sleep(_POLL_S)
        all_gone &= not is_busy(again)
    return all_gone


def _unloaded(control: RepositoryControl, names: Sequence[str], *, until_s: float) -> bool:
    while {one.get("state", "UNAVAILABLE") for one in control.index() if one["name"] in names} - {"UNAVAILABLE"}:
        if time.monotonic() >= until_s:
            return False
        time.sleep(_POLL_S)
    return True


@dataclass
class _Cascade:
    """A cascade that was served with a plan."""

    version: int  # of the cascade, which has that plan
    spec: CascadeSpec
    # The plan's, without its fused prefix, in whose place the members can be asked.
    members: tuple[PlannedModel, ...]
    # Whether files are compared with the plan's hashes.
    verify: bool = True
    is_unloaded: bool = False
    # Members to load again before it, because the server may have loaded other files, or none.
    to_load: set[str] = field(default_factory=set)
    # When to try loading again, on the monotonic clock.
    retry_s: float = 0.0


class CascadeWatch:
    """Compares every loaded cascade with its plan whenever `look` is called; `tell` gets a line per change."""

    def __init__(self, repository: Path, control: RepositoryControl, *, tell: Callable[[str], None]) -> None:
        self._repository = repository
        self._control = control
        self._tell = tell
        self._cascades: dict[str, _Cascade] = {}

    def look(self) -> None:
        """Compares once; does nothing while the server does not answer."""
        with contextlib.suppress(OSError, http.client.HTTPException, ServingError):
            for name, versions in self._control.ready_versions().items():
                self._take_served(name, versions)
            for name, cascade in list(self._cascades.items()):
                if cascade.is_unloaded:
                    self._cascades[name] = self._brought_back(name, cascade)
                else:
                    self._unload_if_wrong(name, cascade, self._cascades)

    def _take_served(self, name: str, versions: frozenset[int]) -> None:
        """Reads the plan that serves now where it is not known: of a new cascade, or of another version."""
        known = self._cascades.get(name)
        if not versions or (known is not None and (known.is_unloaded or known.version == max(versions))):
            return
        if (served := self._served(name, versions)) is not None:
            self._cascades[name] = served
            if known is None and not served.verify:
                self._tell(f"{name}: verify_hashes is no, so a member that is replaced is not noticed")

    def _served(self, name: str, versions: frozenset[int]) -> _Cascade | None:
        version = max(versions, default=0)
        path = self._repository / name / str(version) / PLAN
        if not path.is_file():
            return None
        try:
            spec, verify = cascade_from_path(path), verifies_hashes(self._control.config(name))
        except SpecError:  # changed since the server read it
            return None
        return _Cascade(version, spec, self._members(spec, verify), verify)

    def _members(self, spec: CascadeSpec, verify: bool) -> tuple[PlannedModel, ...]:
        return planned_models(spec, self._repository, verify_files=verify)[: len(spec.members)]

    def _unload_if_wrong(self, name: str, cascade: _Cascade, cascades: Mapping[str, _Cascade]) -> None:
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
        folder = self._repository / name
        # Read again, since a new plan is one way to end the fault.
        with contextlib.suppress(SpecError):
            spec = cascade_from_path(folder / str(max(versions_in(folder), default=0)) / PLAN)
            if spec != cascade.spec:
                cascade.spec, cascade.members = spec, self._members(spec, cascade.verify)
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
