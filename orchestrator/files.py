"""Files and folders replaced whole, hashes of files, and kinds of files: the only place that does these.

What a disk is to blame for is raised as DiskError, with the name of the file that was to be written. Every other
OSError passes to the caller, which knows what the file is for.
"""

import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from orchestrator.errors import DiskError

# What file systems make at their own root; often it cannot even be removed.
NOT_CONTENT = frozenset({"lost+found"})
_PARTIAL = "partial-"
_PART = ".part"
_BLOCK_BYTES = 1 << 20
_IRREGULAR = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


# Names that `replaced_file` and `replaced_folder` make, beside a target or inside it, and what becomes of them.
_UNFINISHED = (
    (re.compile(rf"\.([^/]+)\.\d+-[0-9a-f]+{re.escape(_PART)}$"), r"\1"),
    (re.compile(rf"\.([^/]+)\.{_PARTIAL}\d+/new"), r"\1"),
    (re.compile(rf"/\.{_PARTIAL}\d+/new"), ""),
)
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_BROKEN = frozenset({errno.EIO, errno.EROFS, errno.ESTALE, errno.ENODEV, errno.ENXIO})


def disk_error_from(error: OSError, path: object = None) -> DiskError | None:
    """The error that names a file where the disk is at fault; None where it is the name, a permission or no disk.

    Args:
        error: as the system raised it; in the middle of a write it names no file.
        path: the file that was being written, or what else to call it.
    """
    # Of two names the second is the target.
    named = next((os.fsdecode(name) for name in (error.filename2, error.filename) if name), None)
    where = _finished_name(named or str(path or "the output"))
    if error.errno in _FULL:
        got = None if error.errno == errno.ENOSPC else error.strerror
        return DiskError(f"no space left on {where}", got=got, fix="make room there, or write elsewhere")
    if error.errno in _BROKEN:
        return DiskError(
            where, got=error.strerror, expected="a disk that can be used", fix="mend it, or use another"
        )
    return None


@contextmanager
def disk_faults(path: Path) -> Iterator[None]:
    """Raises DiskError in place of an OSError where the disk is at fault; `path` is what the block writes."""
    try:
        yield
    except OSError as error:
        fault = disk_error_from(error, path)
        if fault is None:
            raise
        raise fault from error


def _finished_name(name: str) -> str:
    """What an unfinished file or one in an unfinished folder will be called, which is the name a user gave."""
    for unfinished, finished in _UNFINISHED:
        name = unfinished.sub(finished, name)
    return name


def irregular_kind(path: Path) -> str | None:
    """What kind of thing a path names, None for a regular file; opening a pipe or a device may block for ever."""
    return _IRREGULAR.get(stat.S_IFMT(path.stat().st_mode))


def open_own(path: Path) -> BinaryIO:
    """Opens a regular file of this user's for reading, in a folder where others may put links and pipes.

    Raises:
        OSError: there is none, or what has its name is a link, no regular file or somebody else's.
    """
    number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    facts = os.fstat(number)
    if not stat.S_ISREG(facts.st_mode) or facts.st_uid != os.getuid():
        os.close(number)
        raise PermissionError(errno.EPERM, "no regular file of this user", str(path))
    return os.fdopen(number, "rb")


def nearest_existing(path: Path) -> Path:
    """The path itself if it exists, else the nearest one above it that does; it may be a file."""
    whole = path.absolute()
    return next(place for place in (whole, *whole.parents) if place.exists())


def contents_of(folder: Path) -> list[str]:
    """Sorted names of a folder's entries, without what the file system or an unfinished replacement put there."""
    names = sorted(path.name for path in folder.iterdir())
    return [name for name in names if name not in NOT_CONTENT and not name.startswith(f".{_PARTIAL}")]


def sha256_of_path(path: Path, *, tick: Callable[[Path], None] | None = None) -> str:
    """Hash of a file, which may be larger than memory; `tick` is called with its path for every block read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            if tick is not None:
                tick(path)
    return digest.hexdigest()


@contextmanager
def replaced_file(path: Path, *, mode: int | None = None) -> Iterator[Path]:
    """An empty file beside `path` to write to, which takes its place when the block ends.

    Where the block fails, `path` is as it was. A block that removes the file leaves `path` as it was, too. The
    permission bits `mode` are those of any new file of this process where they are None.

    Raises:
        DiskError: the disk is full, read-only or broken, or the folder has been removed meanwhile.
    """
    # Beside it, since renaming is atomic within one file system only.
    fresh = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{_PART}")
    with disk_faults(path):
        fresh.touch(exist_ok=False)
        folder = path.parent.stat()
        try:
            yield fresh
            if not fresh.exists():
                _require_same_folder(path, folder)
                return
            if mode is not None:
                fresh.chmod(mode)
            with fresh.open("rb") as file:
                # Otherwise a power cut after the renaming could leave an empty file under the name.
                os.fsync(file.fileno())
            fresh.replace(path)
        except FileNotFoundError:
            _require_same_folder(path, folder)
            raise
        finally:
            with suppress(OSError):
                fresh.unlink()


def remove_unfinished(path: Path) -> None:
    """Removes what processes that were killed while they wrote a file have left beside it, as far as that goes."""
    begin = f".{path.name}."
    with suppress(OSError):
        for left in path.parent.iterdir():
            rest = left.name.removeprefix(begin)
            if rest != left.name and rest.endswith(_PART) and _is_over(rest.split("-")[0]):
                left.unlink()


def _require_same_folder(path: Path, before: os.stat_result) -> None:
    """Tells a block that removed its file on purpose from somebody who removed the folder under it."""
    if not path.parent.is_dir() or not os.path.samestat(path.parent.stat(), before):
        raise DiskError(f"{path}", got=f"{path.parent} removed while it was written", fix="run the command again")


def write_file(path: Path, content: bytes | str, *, mode: int | None = None) -> None:
    """Writes a file whole or not at all; text as UTF-8. See `replaced_file`."""
    with replaced_file(path, mode=mode) as fresh:
        fresh.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def replaced_folder(target: Path, *, first: str | None = None) -> Iterator[Path]:
    """A folder to build in, whose contents become those of the target when the block ends.

    A target that exists is not itself renamed, since it may be a mount point, or be mounted into a container: each
    old entry is renamed away, and the new one into its place at once. Entries that hold the same bytes already are
    left alone, so that a polling server does not load them again. Where the block or a rename fails, the target is
    as it was. A process that is killed between two renames leaves old and new entries side by side, each of them
    whole, and the next replacement completes them. Old entries that could not be put back after a failure stay in
    a hidden folder beside the target, or inside it. Errors of a disk name the target.

    Args:
        target: the folder; made if it is missing.
        first: name of the entry that is put in place before all others.

    Raises:
        BlockingIOError: another process is replacing the contents.
        DiskError: the disk is full, read-only or broken.
    """
    with disk_faults(target), locked_folder(target):
        _recover(target)
        is_new = not target.exists()
        place = _staging_place(target)
        try:
            building = place / "new"
            building.mkdir()
            yield building
            if is_new:
                _rename_to_new(building, target)
            else:
                _take_contents(target, building, old=place / "old", first=first)
                # From here on no recovery puts the old entries back.
                (place / "old").rename(place / "done")
        finally:
            _put_back(place / "old", target)
            if not _entries(place / "old"):
                shutil.rmtree(place, ignore_errors=True)


@contextmanager
def locked_folder(target: Path) -> Iterator[None]:
    """Locks out other processes that write a folder's contents, if it exists and its file system has locks.

    The lock is on the folder itself: it needs no file, holds through every mount, and ends with its process.
    Raises BlockingIOError where another process has it.
    """
    if not target.is_dir():
        yield
        return
    handle = os.open(target, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _in_use(target) from None
        except OSError:  # some network file systems have no locks
            pass
        yield
    finally:
        os.close(handle)


def _in_use(target: Path) -> BlockingIOError:
    text = "another process is writing there, try again when it is done"
    return BlockingIOError(errno.EWOULDBLOCK, text, str(target))


def _rename_to_new(building: Path, target: Path) -> None:
    try:
        building.rename(target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise _in_use(target) from error
        raise


def _staging_place(target: Path) -> Path:
    """A new folder from which entries can be renamed into the target."""
    beside = target.with_name(f".{target.name}.{_PARTIAL}{os.getpid()}")
    if not target.exists():
        beside.mkdir(parents=True)
        return beside
    with suppress(OSError):
        beside.mkdir()
        probe = beside / f".{_PARTIAL}probe"
        probe.touch()
        try:
            probe.rename(target / probe.name).unlink()
        except OSError:
            shutil.rmtree(beside)
            raise
        return beside
    # A mount point: renaming from outside is refused, even where both lie on the same disk.
    inside = target / f".{_PARTIAL}{os.getpid()}"
    inside.mkdir()
    return inside


def recover_folder(target: Path) -> None:
    """Puts back entries that a killed replacement had taken away and not yet replaced, and removes its leftovers.

    Leftovers that cannot be moved or removed stay; they do no harm. Raises BlockingIOError while another process
    is replacing the contents.
    """
    with locked_folder(target):
        _recover(target)


def _recover(target: Path) -> None:
    for folder, prefix in ((target.parent, f".{target.name}.{_PARTIAL}"), (target, f".{_PARTIAL}")):
        with suppress(OSError):
            for path in folder.iterdir():
                if path.name.startswith(prefix) and _is_over(path.name.removeprefix(prefix)):
                    _put_back(path / "old", target)
                    # Old entries whose new ones are in place need no recovery; others are still wanted.
                    if all(os.path.lexists(target / name) for name in _entries(path / "old")):
                        shutil.rmtree(path, ignore_errors=True)


def _put_back(old: Path, target: Path) -> None:
    """Moves old entries back where the target has none of that name, as far as they can be moved."""
    for name in _entries(old):
        if not os.path.lexists(target / name):
            with suppress(OSError):
                (old / name).rename(target / name)


def _entries(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


def _is_over(process: str) -> bool:
    # In a container every run may have the same process id, so a folder with our own id is of an earlier run.
    if not process.isdecimal() or int(process) == os.getpid():
        return process.isdecimal()
    try:
        os.kill(int(process), 0)
    except (OSError, OverflowError) as error:
        return isinstance(error, ProcessLookupError)
    return False


def _take_contents(target: Path, new: Path, *, old: Path, first: str | None) -> None:
    """Renames entries until the target has those of the new folder; undoes every rename if one is refused."""
    old.mkdir()
    wanted = sorted(contents_of(new), key=lambda name: (name != first, name))
    moves: list[tuple[Path, Path]] = []

    def move(source: Path, place: Path) -> None:
        # Noted before the rename: an interrupt may come after the rename and before the next statement.
        moves.append((source, place))
        source.rename(place)

    changed = [name for name in wanted if not _same(target / name, new / name)]
    try:
        for name in changed:
            if os.path.lexists(target / name):
                move(target / name, old / name)
            move(new / name, target / name)
        # Last, so that models that refer to them are gone before them.
        for name in set(contents_of(target)) - set(wanted):
            move(target / name, old / name)
    except BaseException:
        for source, place in reversed(moves):
            if not os.path.lexists(source):
                # A refused rename must not keep the others from being undone.
                with suppress(OSError):
                    place.rename(source)
        raise


def _same(one: Path, other: Path) -> bool:
    """Whether two entries hold the same names and bytes; a link equals nothing."""
    if one.is_symlink() or other.is_symlink() or not one.exists() or one.is_dir() != other.is_dir():
        return False
    if one.is_dir():
        names = sorted(path.name for path in one.iterdir())
        same = names == sorted(path.name for path in other.iterdir())
        return same and all(_same(one / name, other / name) for name in names)
    return one.stat().st_size == other.stat().st_size and _same_bytes(one, other)


def _same_bytes(one: Path, other: Path) -> bool:
    with one.open("rb") as first, other.open("rb") as second:
        while block := first.read(_BLOCK_BYTES):
            if second.read(_BLOCK_BYTES) != block:
                return False
        return not second.read(1)
