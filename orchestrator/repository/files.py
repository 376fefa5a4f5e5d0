"""The files of a repository: written whole or not at all, only over rendered ones; and a cascade's model.py.

Every OSError of this package is turned into a RepositoryError here.
"""

import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import orchestrator
from orchestrator import files as disk
from orchestrator.errors import RepositoryError
from orchestrator.pbtxt import is_written_here, text_from_path

# Marks a folder made by `committee render --output`; Triton ignores files beside the models' folders.
MARK = ".rendered-by-committee"


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """Files that a rendering wrote, found up to date, or left alone because somebody else wrote or edited them."""

    written: tuple[Path, ...] = ()
    unchanged: tuple[Path, ...] = ()
    kept: tuple[Path, ...] = ()

    def __add__(self, other: "Rendering") -> "Rendering":
        """The paths of both renderings."""
        return Rendering(**{name: paths + getattr(other, name) for name, paths in vars(self).items()})


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turns an OSError of the block into a RepositoryError whose subject is `what`, or into a DiskError."""
    try:
        yield
    except OSError as error:
        if (fault := disk.disk_error_from(error)) is not None:
            raise fault from error
        reason = error.strerror or str(error)
        where = error.filename or what
        raise RepositoryError(what, got=f"{reason} ({where})", expected="a folder that can be used") from error


def write_all(folder: Path, files: Mapping[str, bytes | str]) -> Rendering:
    """Writes files (path in the folder -> content) in the order given, each in one step.

    Those that hold the same bytes already keep their times, so that a polling server does not load them again.
    """
    written, unchanged = [], []
    with disk_errors(f"writing {folder}"):
        for name, content in files.items():
            path = folder / name
            data = content.encode() if isinstance(content, str) else content
            if path.is_file() and path.read_bytes() == data:
                unchanged.append(path)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            # A server in a container runs as another user, who must be able to read it whatever the umask is.
            disk.write_file(path, data, mode=0o644)
            written.append(path)
    return Rendering(written=tuple(written), unchanged=tuple(unchanged))


def may_replace(path: Path) -> bool:
    """True where there is no config yet, or one that was rendered and not edited since."""
    return not path.exists() or is_written_here(text_from_path(path))


def remove_others(folder: Path, keep: Collection[str]) -> None:
    """Removes the Python files that are not among `keep`, as an older runtime leaves them; all of it for none."""
    with disk_errors(f"cleaning {folder}"):
        if not keep:
            shutil.rmtree(folder)
            return
        for path in folder.rglob("*.py"):
            if path.relative_to(folder).as_posix() not in keep:
                path.unlink()


def copy_model(source: Path, target: Path) -> None:
    """Copies a model folder; links are followed, so that the copy needs nothing outside itself.

    Files get the time of the copy: a polling server loads a model again only if a file became newer.
    """
    with disk_errors(f"copying {source}"):
        try:
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, target, ignore=ignored, copy_function=_copied_file)
        except shutil.Error as error:
            raise OSError(0, error.args[0][0][2], error.args[0][0][0]) from error


def _copied_file(source: str, target: str) -> str:
    # An OSError copytree would collect as text; what the disk is to blame for ends the copy.
    with disk.disk_faults(Path(target)):
        return shutil.copy(source, target)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to build in whose contents become the target's when the block ends, or go away when it fails.

    See `replaced_folder` for how they are replaced.

    Raises:
        RepositoryError: the target holds what was not made this way, or cannot be written.
    """
    with disk_errors(f"output {target}"):
        check_output(target)
        target = target.resolve()
        with disk.replaced_folder(target, first=MARK) as building:
            yield building
            (building / MARK).write_text("Made by `committee render --output`; the next one replaces it.\n")


def check_output(target: Path) -> None:
    """Refuses to replace a folder that no rendering made.

    Raises:
        RepositoryError: the target is a file, or a folder with something else in it.
    """
    if not target.exists() or (target / MARK).is_file():
        return
    if not target.is_dir() or disk.contents_of(target):
        raise RepositoryError(
            f"output {target}",
            got="files that no rendering made",
            expected="a new, empty or earlier rendered folder",
            fix="name another folder",
        )


def sha256_of_path(path: Path) -> str:
    """Hash of a file's bytes; RepositoryError where the file cannot be read."""
    with disk_errors(f"reading {path}"):
        return disk.sha256_of_path(path)


SHIM = '''\
"""The cascade described by cascade.json, as Triton loads it. Written by committee: render again to change it."""

import importlib
import sys
from pathlib import Path

import triton_python_backend_utils as pb_utils

# Nearest first: a standalone rendering keeps the runtime beside this file, a checkout above it.
for folder in Path(__file__).resolve().parents:
    if (folder / "orchestrator" / "bls" / "model.py").is_file():
        sys.path.insert(0, str(folder))
        break

try:
    runtime = importlib.import_module("orchestrator.bls.model")
except ModuleNotFoundError as error:
    raise ImportError(f"{__file__}: {error}; render with --standalone, or install what is missing") from error

TritonPythonModel = runtime.cascade_model(pb_utils)
'''
RUNTIME = "orchestrator"
# Of the package, what needs numpy and nothing else.
_PARTS = ("__init__.py", "errors.py", "files.py", "probe.py", "spec", "decision", "bls")


def runtime_files() -> dict[str, bytes]:
    """The runtime's source files, path in the package -> bytes."""
    root = Path(orchestrator.__file__).parent
    paths = (path for part in _PARTS for path in (sorted((root / part).rglob("*.py")) or [root / part]))
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


def is_shim(path: Path | None) -> bool:
    """True for a model.py that loads the runtime, whichever version of committee wrote it."""
    if path is None or path.name != "model.py" or not path.is_file():
        return False
    return b"orchestrator.bls.model" in path.read_bytes()
