"""Whether the models that a plan names are still those it was made with: version, files and readiness.

The runtime checks this inside the server and `committee serve` outside of it, so the function that asks for
readiness is handed in. Gigabytes are hashed at load, and again only when a file's times, size or inode change.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from orchestrator.errors import SpecError
from orchestrator.files import sha256_of_path
from orchestrator.spec.cascade import CascadeSpec, FusedPrefix, Member
from orchestrator.spec.derived import Derived
from orchestrator.spec.manifest import MANIFEST, manifest_from_path
from orchestrator.spec.triton import BACKEND_OF_FILE, versions_in

# (name of a model, its version or None for any) -> whether the server would answer for it now
Ready = Callable[[str, "int | None"], bool]
# Called with a file's path for every block that is read.
Tick = Callable[[Path], None]
_YES, _NO = ("", "yes", "true", "on", "1"), ("no", "false", "off", "0")


def verifies_hashes(config: Mapping[str, Any]) -> bool:
    """Whether a cascade's configuration leaves the comparison of member files with planned hashes switched on.

    Raises:
        SpecError: the parameter `verify_hashes` is neither yes nor no.
    """
    said = str(config.get("parameters", {}).get("verify_hashes", {}).get("string_value", "")).strip().lower()
    if said not in (*_YES, *_NO):
        raise SpecError("config.pbtxt", {"verify_hashes": f"got {said!r}, expected yes or no"})
    return said not in _NO


class PlannedModel:
    """A member, fused prefix or deriving model of a plan, held against the model of that name in the server.

    Where the plan names no version, the newest one that is ready and has the planned file is taken, and kept while
    that holds. The server is asked which versions are ready: its configuration may not be config.pbtxt
    (`--model-config-name`, or one that came with a load request).

    `verify_files` says whether to compare the model's files with the plan's hashes, `may_fail` whether its stage
    answers without it.
    """

    def __init__(
        self,
        planned: Member | FusedPrefix | Derived,
        repository: Path,
        *,
        verify_files: bool = True,
        may_fail: bool = False,
    ) -> None:
        self.name = planned.name
        self.version = planned.version  # number of the one to ask; None leaves the choice to the server
        self.was_changed = False  # the files differed at some time, so that the server may have loaded those
        self.reads = 0  # how often files were read; a number that grows means that a file was written or replaced
        self._is_missing = False
        self._may_fail = may_fail
        self._was_ready = False
        self._pinned = planned.version is not None
        self._folder = repository / planned.name
        self.is_seen = self._folder.is_dir()  # this process may not be able to see it
        # The plan has a hash of the model file, and what it answers shows whether it is that file.
        self.has_hash = planned.sha256 is not None and verify_files and not isinstance(planned, Derived)
        self._expected = self._expected_files(planned) if verify_files and self.is_seen else {}
        self._digests: dict[Path, tuple[tuple[int, ...], str]] = {}

    @property
    def is_verified(self) -> bool:
        """Whether its files are compared with the plan's hashes."""
        return bool(self._expected)

    @property
    def file(self) -> Path | None:
        """The model file of the version to ask, which has the planned hash; None where files are not compared."""
        is_known = self.is_verified and self.version is not None
        return self._folder / str(self.version) / next(iter(self._expected)) if is_known else None

    @property
    def runs_onnx(self) -> bool:
        """Whether ONNX Runtime reads its inputs, as far as its folder is seen and tells."""
        if (_exported_files(self._folder)[0] or "").endswith(".onnx"):
            return True
        folders = [self._folder / str(version) for version in versions_in(self._folder)]
        return any([*folder.glob("*.onnx")] and not (folder / "model.py").exists() for folder in folders)

    def fault(self, ready: Ready | None = None, *, tick: Tick | None = None) -> str | None:
        """What differs from the plan now; None where nothing does, and `version` is then the one to ask.

        Args:
            ready: asks the server; None looks at the files alone, for when no server runs yet.
            tick: called for every block that is read.
        """
        first = None
        self._is_missing = False
        for version in self._candidates():
            wrong = self._wrong(version, ready, tick)
            if wrong is None:
                self.version = version
                self._was_ready |= ready is not None
                return None
            first = first or wrong
        self._is_missing = ready is not None and not ready(self.name, None)
        return first or f"there is no version in {self._folder}"

    @property
    def is_left_to_stage(self) -> bool:
        """Whether the member is missing and was not changed, which is left to its stage's failure rule.

        Such a member cannot give wrong answers: it fails the requests that need it, as any failing member does.
        """
        return self._is_missing and not self.was_changed and (self._may_fail or not self._was_ready)

    def _candidates(self) -> Iterator[int | None]:
        if self._pinned or not self.is_verified:
            yield self.version
            return
        if self.version is not None:
            yield self.version
        yield from (version for version in reversed(versions_in(self._folder)) if version != self.version)

    def _wrong(self, version: int | None, ready: Ready | None, tick: Tick | None) -> str | None:
        if version is not None and self.is_seen:
            folder = self._folder / str(version)
            if not folder.is_dir():
                return f"its version {version} is gone from {self._folder}"
            wrong = self._wrong_file(folder, tick)
            if wrong is not None:
                self.was_changed |= version == self.version
                return wrong
        if ready is not None and not ready(self.name, version):
            return "it is not ready" if version is None else f"its version {version} is not ready"
        return None

    def _wrong_file(self, folder: Path, tick: Tick | None) -> str | None:
        """What is wrong with the files of a version folder; None where they are the expected ones."""
        for name, expected in self._expected.items():
            path = folder / name
            try:
                before = _identity(path)
                known, digest = self._digests.get(path, (None, ""))
                if known != before:
                    self.reads += 1
                    digest = sha256_of_path(path, tick=tick)
                    if _identity(path) != before:
                        return f"{path} is being written"
                    self._digests[path] = (before, digest)
            except FileNotFoundError:
                return f"{path} is gone"
            except OSError as error:
                return f"{path} cannot be read ({error.strerror})"
            if digest != expected:
                return f"{path} is not the file the thresholds were fitted on"
        return None

    def _expected_files(self, planned: Member | FusedPrefix | Derived) -> dict[str, str]:
        """Path in the version folder -> sha256; empty where the plan has no hash or the file's name is unknown."""
        name, data_files = _exported_files(self._folder)
        folders = [self._folder / str(version) for version in versions_in(self._folder)]
        usual = (file for file in BACKEND_OF_FILE for folder in folders if (folder / file).is_file())
        name = name or next(usual, None)
        if planned.sha256 is None or name is None:
            return {}
        # With weights in files beside it, a graph file does not tell weights apart, so the plan's hashes of those
        # files come before the manifest's, which may have been written since.
        beside = planned.data_files if isinstance(planned, Member) else {}
        return {name: planned.sha256, **(beside or data_files)}


def planned_models(spec: CascadeSpec, repository: Path, *, verify_files: bool = True) -> tuple[PlannedModel, ...]:
    """The members of a plan in its order, then its fused prefix if it has one, and its deriving models."""
    optional = {one.name for stage in spec.stages if stage.on_failure == "answer" for one in stage.members}
    optional |= {one.name for one in spec.derived} - {
        one.name
        for number, stage in enumerate(spec.stages)
        if stage.on_failure != "answer"
        for one in spec.derived_for(number)
    }
    return tuple(
        PlannedModel(one, repository, verify_files=verify_files, may_fail=one.name in optional)
        for one in spec.planned
    )


def c_strings_of(spec: CascadeSpec, models: Sequence[PlannedModel]) -> frozenset[str]:
    """The cascade's tensors of text that ONNX Runtime reads; models of `planned_models`."""
    pairs = zip(spec.planned, models, strict=False)
    readers = [one for one, model in pairs if not isinstance(one, FusedPrefix) and model.runs_onnx]
    read = {name for one in readers for name in spec.tensors_of(one).values()}
    return frozenset(name for name in read if spec.tensors[name].is_text)


def data_files_of(data_files: Mapping[str, str]) -> dict[str, str]:
    """A manifest's `data_files` by path inside the version folder, with which the manifest's paths begin."""
    return {PurePosixPath(*PurePosixPath(path).parts[1:]).as_posix(): said for path, said in data_files.items()}


def _exported_files(folder: Path) -> tuple[str | None, dict[str, str]]:
    """Name of the model file and hashes of its data files, as the member's manifest has them."""
    try:
        manifest = manifest_from_path(folder / MANIFEST)
    except SpecError:  # `check` reports it
        return None, {}
    return PurePosixPath(manifest.file).name, data_files_of(manifest.data_files)


def _identity(path: Path) -> tuple[int, ...]:
    """Values, at least one of which changes whenever a file is written or replaced, kept dates included."""
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino, stat.st_dev
