"""An unfinished recording: numbered parts in a folder beside the output, until they become one records file.

`.<output>.parts/header.json` says what is being recorded; `<first>-<stop>.npz` holds the outputs of positions
first to stop - 1. Positions number the rows that were asked for, in order. Each part appears whole or not at all,
so a killed process loses the rows after the last part and nothing else.
What a finished recording was made of is noted beside it, so that the same command has nothing to do.
"""

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import DataError
from orchestrator.files import disk_faults, write_file
from orchestrator.planner.records import OUTPUTS, RecordsFile, records_file_from_path, text_from_meta
from orchestrator.recording.pool import RecordingPool
from orchestrator.recording.summary import recorded_class_names
from orchestrator.rows.blocks import RowSource
from orchestrator.rows.npz import BROKEN, arrays_from_path, npz_writer
from orchestrator.spec.documents import value_from_json

HEADER = "header.json"
# Names of parts; other files in the folder stay as they are.
PART = re.compile(r"\d{12,}-\d{12,}\Z")
LOCK = "lock"
LENGTHS = "length/"
NO_DIGEST = b"\0" * 32


@dataclass(frozen=True, kw_only=True)
class RecordedPiece:
    """Positions `first` to `stop` - 1 with the members' outputs.

    Args:
        kept: int64 (n,), those with outputs.
        outputs: member name -> float32 (n, k).
        skipped: position -> why it has none.
        digests: of the kept rows, where the source is hashed while it is read.
        lengths: member name -> int64 (n,), how long the kept rows are, for members whose cost depends on it.
        non_finite: how many of the kept rows hold NaN or infinity.
    """

    first: int
    stop: int
    kept: npt.NDArray[np.int64]
    outputs: Mapping[str, npt.NDArray[np.float32]]
    skipped: Mapping[int, str] = field(default_factory=dict)
    digests: tuple[bytes, ...] = ()
    lengths: Mapping[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    non_finite: int = 0


class Shards:
    """The parts of one recording, held by one process at a time; `output` is the records file made of them.

    The header says what is being recorded, as JSON values; parts with another one are refused, or thrown away
    where `restart` says so. Raises DataError for another header, another process, or a place that cannot be
    written to.
    """

    def __init__(self, output: Path, header: Mapping[str, Any], *, restart: bool = False) -> None:
        self.output = output
        self.folder = output.with_name(f".{output.name}.parts")
        self._paths: list[Path] = []
        self.is_broken = False
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(disk_faults(output))
                self.folder.mkdir(parents=True, exist_ok=True)
                self._lock = self._locked()
                stack.callback(os.close, self._lock)
                self._begin(text_from_meta(header), restart=restart)
                # Hash of all data read so far, where the source is hashed while it is read.
                self.digest = self._array(self._paths[-1], "digest").tobytes() if self._paths else NO_DIGEST
            except OSError as error:
                got = f"a place that cannot be written to ({error.strerror})"
                raise DataError(f"{self.folder}", got=got) from error
            stack.pop_all()
        self.resumed = self.done

    @property
    def done(self) -> int:
        """The position at which the next shard begins."""
        return _span(self._paths[-1])[1] if self._paths else 0

    def add(self, pieces: Sequence[RecordedPiece]) -> None:
        """Writes the next part; DataError where the disk is full."""
        first, stop = pieces[0].first, pieces[-1].stop
        assert first == self.done < stop, "pieces come in order and without gaps"
        for one in itertools.chain.from_iterable(piece.digests for piece in pieces):
            self.digest = hashlib.sha256(self.digest + one).digest()
        skipped = {str(position): why for piece in pieces for position, why in piece.skipped.items()}
        path = self.folder / f"{first:012d}-{stop:012d}.npz"
        try:
            with npz_writer(path) as writer:
                writer.add("kept", np.concatenate([piece.kept for piece in pieces]), packed=False)
                for name in pieces[0].outputs:
                    outputs = np.concatenate([piece.outputs[name] for piece in pieces])
                    writer.add(f"{OUTPUTS}{name}", outputs, packed=False)
                for name in pieces[0].lengths:
                    lengths = np.concatenate([piece.lengths[name] for piece in pieces])
                    writer.add(f"{LENGTHS}{name}", lengths, packed=False)
                writer.add("non_finite", np.array(sum(piece.non_finite for piece in pieces)), packed=False)
                writer.add("skipped", np.array(text_from_meta(skipped)), packed=False)
                writer.add("digest", np.frombuffer(self.digest, np.uint8), packed=False)
        finally:
            # A signal may raise after the part has appeared; then it is kept.
            if path.is_file():
                self._paths.append(path)

    def kept(self) -> npt.NDArray[np.int64]:
        """int64 (n,), positions that have outputs."""
        return np.concatenate([np.zeros(0, np.int64), *(self._array(path, "kept") for path in self._paths)])

    def skipped(self) -> dict[int, str]:
        """Position -> why it has no outputs."""
        found: dict[int, str] = {}
        for path in self._paths:
            found |= {int(k): v for k, v in json.loads(str(self._array(path, "skipped"))).items()}
        return found

    def outputs(self, name: str) -> Iterator[npt.NDArray[np.float32]]:
        """A member's outputs part by part, float32 (n, k) in all."""
        for path in self._paths:
            yield self._array(path, f"{OUTPUTS}{name}")

    def lengths(self, name: str) -> npt.NDArray[np.int64]:
        """How long the rows of `kept` are for a member whose cost depends on it, int64 (n,)."""
        return np.concatenate([self._array(path, f"{LENGTHS}{name}") for path in self._paths])

    def non_finite(self) -> int:
        """How many of the rows that have outputs hold NaN or infinity."""
        return sum(int(self._array(path, "non_finite")) for path in self._paths)

    def remove(self) -> None:
        """Throws the parts away."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._paths = []

    def close(self) -> None:
        """Releases the lock; removes the folder where it has no parts."""
        if not self._paths:
            self.remove()
        os.close(self._lock)

    def _locked(self) -> int:
        handle = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            got, fix = "another process that records to it", "wait for it or choose another `output`"
            raise DataError(f"{self.folder}", got=got, fix=fix) from error
        return handle

    def _begin(self, header: str, *, restart: bool) -> None:
        path = self.folder / HEADER
        # Bytes that are no text make a header that differs from any other, as it should.
        known = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None
        if restart or known is None:
            for old in self._parts():
                old.unlink()
        elif known != header:
            raise DataError(
                f"unfinished recording {self.folder}",
                got=f"one that differs in {_difference(known, header)}",
                expected="the same data and members",
                fix="throw it away with `restart`, or choose another `output`",
            )
        for left in (*self.folder.glob(".*.part"), *self.output.parent.glob(f".{self.output.name}.*.part")):
            # Left by a process that was killed while it wrote: nobody else can write while we have the lock.
            left.unlink()
        if restart or known is None:
            write_file(path, header)
        # Readable parts without gaps from position 0 are good; the others are removed and recorded again.
        for part in self._parts():
            if _span(part)[0] == self.done and _is_whole(part):
                self._paths.append(part)
            else:
                part.unlink()

    def _parts(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("*.npz") if PART.match(path.stem))

    def _array(self, path: Path, name: str) -> npt.NDArray[Any]:
        try:
            with np.load(path, allow_pickle=False) as stored:
                array: npt.NDArray[Any] = stored[name]
        except BROKEN as error:
            self.is_broken = True
            raise DataError(f"{path}", got=f"a part that cannot be read ({error})", fix="use `restart`") from error
        return array


def _span(path: Path) -> tuple[int, int]:
    first, _, stop = path.stem.partition("-")
    return int(first), int(stop)


def _is_whole(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except BROKEN:
        return False


def _difference(known: str, header: str) -> str:
    """The fields of two headers that differ, in words."""
    try:
        old, new = value_from_json(known), json.loads(header)
    except ValueError:
        old = None
    if not isinstance(old, dict):
        return "its header, which cannot be read"
    keys = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    return ", ".join(keys).replace("_", " ") or "its header"


def recording_fingerprint(
    header: Mapping[str, Any], pool: RecordingPool, source: RowSource, *, skip_bad: bool
) -> str | None:
    """Hash, sha256 in hex, of everything that decides the records; `header` is that of `Shards`.

    None for members of a server, which may be replaced behind the same name, and for members without a hash.
    """
    if not pool.made_with or any(about["sha256"] is None for about in pool.about().values()):
        return None
    decides = {
        **header,
        "made_with": dict(pool.made_with),
        "kinds": {name: list(kind) for name, kind in pool.kinds.items()},
        "class_names": recorded_class_names(source, pool),
        "labels_by": source.labels.by,
        "data_state": source.state,
        "skip_bad": skip_bad,
    }
    return hashlib.sha256(text_from_meta(decides).encode()).hexdigest()


def keep_fingerprint(output: Path, fingerprint: str | None) -> None:
    """Writes the fingerprint beside a finished records file; None forgets what was noted.

    It is not in the file, since equal recordings are equal bytes.
    """
    note = _note_of(output)
    # Without the note the rows are recorded again, which harms nobody.
    with contextlib.suppress(OSError):
        note.unlink(missing_ok=True)
        if fingerprint is not None:
            note.write_text(json.dumps(_noted(output, fingerprint)), encoding="utf-8")


def finished_recording(output: Path, fingerprint: str | None) -> RecordsFile | None:
    """The records file at `output` if it was made with that fingerprint, else None."""
    try:
        noted = value_from_json(_note_of(output).read_text(encoding="utf-8"))
        is_same = fingerprint is not None and noted == _noted(output, fingerprint)
        return records_file_from_path(output) if is_same else None
    except (OSError, ValueError, DataError):
        return None


def stored_outputs(path: Path, name: str) -> Iterator[npt.NDArray[np.float32]]:
    """A member's outputs in a records file, float32 (n, k), without the others', since all may take gigabytes."""
    wanted = f"{OUTPUTS}{name}"
    yield arrays_from_path(path, what=f"records {path}", wanted=lambda stored: stored == wanted)[wanted]


def _note_of(output: Path) -> Path:
    return output.with_name(f".{output.name}.recording")


def _noted(output: Path, fingerprint: str) -> dict[str, Any]:
    """The fingerprint, with the size and time of the file, which change when somebody writes it."""
    stat = output.stat()
    return {"recording": fingerprint, "file": [stat.st_size, stat.st_mtime_ns]}
