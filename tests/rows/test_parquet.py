"""Columns as people's Parquet has them, in every command that reads it."""

import decimal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.__main__ import run
from orchestrator.cli.batch import REFUSED
from orchestrator.planner.records import Records, records_from_path
from orchestrator.recording.job import RecordOptions, source_for
from orchestrator.recording.pool import RecordingPool, opened_pool
from orchestrator.rows import parquet
from orchestrator.rows.parquet_table import parquet_table
from tests.batch.fixtures import Batching, batching_in, encoded
from tests.fakes.kserve import images
from tests.recording.builders import NAMES, picture, png, rows_of, write_member
from tests.rows.broken_pictures import BAD_EXIF, KINDS, broken_avif, noise
from tests.rows.broken_pictures import encoded as encoded_as

ROWS = 24
TEXTS = [f"row {k % 24:02d}" for k in range(ROWS)]
UUIDS = [uuid.UUID(int=k) for k in range(ROWS)]
Make = Callable[[list[Any]], Any]

IDS: dict[str, tuple[Any, list[Any]]] = {
    "dictionary": (pa.array(TEXTS).dictionary_encode(), TEXTS),
    "string_view": (pa.array(TEXTS, pa.string_view()), TEXTS),
    "large_string": (pa.array(TEXTS, pa.large_string()), TEXTS),
    "large_string dictionary": (pa.array(TEXTS, pa.large_string()).dictionary_encode(), TEXTS),
    "text as bytes": (pa.array([text.encode() for text in TEXTS]), TEXTS),
    "uuid": (pa.array([one.bytes for one in UUIDS], pa.uuid()), [str(one) for one in UUIDS]),
    "decimal": (pa.array([decimal.Decimal(k) for k in range(ROWS)], pa.decimal128(38, 0)), list(range(ROWS))),
    "uint64": (pa.array(range(ROWS), pa.uint64()), list(range(ROWS))),
    "int8": (pa.array(range(ROWS), pa.int8()), list(range(ROWS))),
}
BINARIES: dict[str, Make] = {
    "dictionary": lambda values: pa.array(values).dictionary_encode(),
    "binary_view": lambda values: pa.array(values, pa.binary_view()),
    "large_binary": lambda values: pa.array(values, pa.large_binary()),
    "large_binary dictionary": lambda values: pa.array(values, pa.large_binary()).dictionary_encode(),
    "struct of dictionary": lambda values: pa.StructArray.from_arrays(
        [pa.array(values).dictionary_encode()], ["bytes"]
    ),
    "struct of binary_view": lambda values: pa.StructArray.from_arrays(
        [pa.array(values, pa.binary_view())], ["bytes"]
    ),
}
ENCODED = [png(picture(seed)) for seed in range(ROWS)]
LABELS = np.arange(ROWS) % 3


@pytest.fixture
def job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Batching]:
    with batching_in(tmp_path, capsys) as batching:
        yield batching


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    write_member(tmp_path / "repository", "a", seed=1)
    return tmp_path / "repository"


def write(path: Path, *, group: int | None = 7, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    # pyarrow cannot cut views into row groups.
    views = any("_view" in str(column.type) for column in columns.values() if isinstance(column, pa.Array))
    # Opened here, since pyarrow does not take every name.
    with path.open("wb") as file:
        pq.write_table(pa.table(columns), file, row_group_size=None if views else group)
    return path


def words_for(repository: Path, data: Path, output: str, *options: object) -> list[str]:
    words = ["record", "a", "--data", data, "-o", repository.parent / output, "--repository", repository]
    return [str(word) for word in (*words, *options)]


def recorded(repository: Path, data: Path, *options: object, code: int = 0) -> Records:
    assert run(words_for(repository, data, "out.npz", *options)) == code
    return records_from_path(repository.parent / "out.npz")


def refusal(repository: Path, capsys: pytest.CaptureFixture[str], data: Path, *options: object) -> str:
    capsys.readouterr()
    assert run(words_for(repository, data, "no.npz", *options)) == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    return text


# -- how columns are stored --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", IDS)
def test_ids_may_be_stored_in_any_way(repository: Path, job: Batching, kind: str) -> None:
    column, ids = IDS[kind]
    data = write(repository.parent / "ids.parquet", id=column, image=ENCODED, label=LABELS)
    assert recorded(repository, data).ids.tolist() == ids
    write(job.folder / "in.parquet", id=column, image=[encoded(k % 10) for k in range(ROWS)])
    job.batch("in.parquet", "out.parquet", "--request-rows", 5)
    assert job.answers("out.parquet")["id"] == ids


@pytest.mark.parametrize("kind", BINARIES)
def test_pictures_may_be_stored_in_any_way(repository: Path, job: Batching, kind: str) -> None:
    plain = recorded(repository, write(repository.parent / "plain.parquet", image=ENCODED))
    data = write(repository.parent / "odd.parquet", image=BINARIES[kind](ENCODED))
    np.testing.assert_array_equal(recorded(repository, data).outputs["a"], plain.outputs["a"])
    # Few different ones over and over, as a dictionary is for.
    write(job.folder / "in.parquet", image=BINARIES[kind]([encoded(k % 3) for k in range(ROWS)]))
    job.batch("in.parquet", "out.npz", "--request-rows", 5)
    assert job.answers()["label"] == [k % 3 for k in range(ROWS)]


@pytest.mark.parametrize("kind", BINARIES)
def test_raw_tensors_may_be_stored_in_any_way(job: Batching, kind: str) -> None:
    rows = images(np.arange(ROWS) % 10)
    write(job.folder / "in.parquet", image=BINARIES[kind]([row.tobytes() for row in rows]))
    job.batch("in.parquet")
    assert job.answers()["label"] == [k % 10 for k in range(ROWS)]


FORMS: dict[str, Callable[[np.ndarray], Any]] = {
    "flat": lambda rows: pa.array(rows.reshape(ROWS, -1).tolist(), pa.list_(pa.float32())),
    "nested": lambda rows: pa.array(rows.tolist(), pa.list_(pa.list_(pa.list_(pa.float32())))),
    "fixed": lambda rows: pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), 64),
    "double": lambda rows: pa.array(rows.reshape(ROWS, -1).tolist()),
    "bytes": lambda rows: pa.array([row.tobytes() for row in rows]),
    "struct": lambda rows: pa.array([{"bytes": row.tobytes(), "path": "x"} for row in rows]),
    "large list": lambda rows: pa.array(rows.reshape(ROWS, -1).tolist(), pa.large_list(pa.float64())),
    "list view": lambda rows: pa.array(rows.reshape(ROWS, -1).tolist(), pa.list_view(pa.float32())),
    "fixed-size bytes": lambda rows: pa.array([row.tobytes() for row in rows], pa.binary(256)),
    "tensor": pa.FixedShapeTensorArray.from_numpy_ndarray,
}


@pytest.mark.parametrize("kind", FORMS)
def test_numbers_may_be_stored_in_any_way(job: Batching, kind: str) -> None:
    write(job.folder / "in.parquet", id=TEXTS, image=FORMS[kind](images(np.arange(ROWS) % 10)), extra=LABELS)
    job.batch("in.parquet", "out.parquet", "--request-rows", 5)
    assert job.answers("out.parquet")["id"] == TEXTS
    assert job.answers("out.parquet")["label"] == [k % 10 for k in range(ROWS)]


@pytest.mark.parametrize(
    "make",
    [
        lambda words: pa.array(words).dictionary_encode(),
        lambda words: pa.array(words, pa.string_view()),
        lambda words: pa.array(words, pa.large_string()),
        lambda words: pa.array([word.encode() for word in words]),
        lambda words: pa.array([NAMES.index(word) for word in words], pa.uint8()),
        lambda words: pa.array([NAMES.index(word) for word in words]).dictionary_encode(),
        lambda words: pa.array([decimal.Decimal(NAMES.index(word)) for word in words], pa.decimal128(9, 0)),
    ],
    ids=["dictionary", "string_view", "large_string", "bytes", "uint8", "numbers in a dictionary", "decimal"],
)
def test_labels_may_be_stored_in_any_way(repository: Path, make: Make) -> None:
    words = [NAMES[label] for label in LABELS]
    found = recorded(repository, write(repository.parent / "in.parquet", image=ENCODED, label=make(words)))
    assert found.labels is not None
    assert found.labels.tolist() == LABELS.tolist()


@pytest.mark.parametrize("kind", KINDS.values())
def test_bytes_in_parquet_are_read_as_files_in_folders_are(repository: Path, kind: str) -> None:
    files = [encoded_as(noise(8, seed=k), kind) for k in range(3)]
    ending = next(ending for ending, name in KINDS.items() if name == kind)
    for k, data in enumerate(files):
        path = repository.parent / "pictures" / NAMES[k] / f"x{ending}"
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
    folder = recorded(repository, repository.parent / "pictures")
    table = recorded(repository, write(repository.parent / "in.parquet", image=files))
    np.testing.assert_array_equal(table.outputs["a"], folder.outputs["a"])


# -- pictures that nothing can decode ----------------------------------------------------------------

BROKEN = {"text": BAD_EXIF["text"], "undefined": BAD_EXIF["undefined"], "avif": broken_avif()}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_picture_that_breaks_its_decoder_is_refused_and_the_rest_answered(
    repository: Path, job: Batching, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    for name, data in (("a", ENCODED[0]), ("b", BROKEN[kind]), ("c", ENCODED[2])):
        path = repository.parent / "pictures" / "cat" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    assert "cat/b.jpg" in refusal(repository, capsys, repository.parent / "pictures")
    found = recorded(repository, repository.parent / "pictures", "--skip-bad")
    assert found.ids.tolist() == ["cat/a.jpg", "cat/c.jpg"]
    said = "no picture that can be read" if kind == "avif" else "EXIF that cannot be read"
    assert said in found.meta["skipped"]["cat/b.jpg"]
    pictures = pa.array([encoded(4), BROKEN[kind], encoded(6)])
    job.parquet(id=pa.array(["x", "y", "z"]), image=pictures, place=pa.array([10, 11, 12]))
    job.batch("in.parquet", "out.npz", "--keep-columns", "place", code=REFUSED)
    assert job.answers()["id"] == ["x", "z"]
    assert job.answers()["place"] == [10, 12]
    assert job.answers()["label"] == [4, 6]
    assert said in job.refused()["y"]


def test_a_struct_that_is_null_is_a_row_that_is_null(job: Batching) -> None:
    job.parquet(image=pa.array([{"bytes": encoded(1)}, None, {"bytes": None}, {"bytes": encoded(2)}]))
    job.batch("in.parquet", code=REFUSED)
    assert job.answers()["label"] == [1, 2]
    assert job.refused() == {n: f"{job.folder / 'in.parquet'} row {n}: got null" for n in (1, 2)}


# -- which column is what ----------------------------------------------------------------------------


def test_columns_of_other_names_are_named(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns = {"photo": ENCODED, "thumb": ENCODED[::-1], "key": TEXTS, "kind": LABELS}
    named = ("--column", "photo", "--id-column", "key", "--label-column", "kind")
    data = write(repository.parent / "in.parquet", **columns)
    rows = rows_of(ROWS)
    np.savez(repository.parent / "in.npz", **{**columns, "photo": rows, "thumb": rows[::-1]})
    for source in (data, repository.parent / "in.npz"):
        found = recorded(repository, source, *named)
        assert found.labels is not None
        assert (found.ids.tolist(), found.labels.tolist()) == (TEXTS, LABELS.tolist())
        assert "expected other" in refusal(repository, capsys, source, *named[:4], "--label-column", "other")
    assert "see --id-column" in refusal(repository, capsys, data, "--id-column", "none")


@pytest.mark.parametrize("data", ["digits:plan", "pictures", "in.npy"])
def test_data_without_columns_has_none_to_name(
    repository: Path, capsys: pytest.CaptureFixture[str], data: str
) -> None:
    (repository.parent / "pictures").mkdir()
    np.save(repository.parent / "in.npy", np.zeros((3, 3, 4, 4), np.uint8))
    source = Path(data) if ":" in data else repository.parent / data
    assert "key" in refusal(repository, capsys, source, "--id-column", "key")


@pytest.mark.parametrize("output", ["out.parquet", "out.npz"])
@pytest.mark.parametrize("source", ["in.parquet", "in.npz"])
def test_named_ids_and_kept_columns_go_with_their_rows(job: Batching, source: str, output: str) -> None:
    keys = np.arange(ROWS) % 10
    columns = {
        "key": np.array(TEXTS),
        "label": keys,
        "weight": np.linspace(0, 1, ROWS, dtype=np.float32),
        "site": np.array(["north", "süd"])[np.arange(ROWS) % 2],
        "good": np.arange(ROWS) % 3 == 0,
    }
    rows = images(keys)
    # Refused one by one, and by the model: what stays must keep its own values.
    rows[[3, 4, 17]] = np.nan
    job.save(images=rows, other=np.zeros(3), **columns)
    write(job.folder / "in.parquet", image=[row.tobytes() for row in rows], **columns)
    words = ["--id-column", "key", "--keep-columns", " site, weight", "--keep-columns", "label,good,site"]
    job.batch(source, output, "--request-rows", 8, *words, code=REFUSED)
    kept = [k for k in range(ROWS) if k not in (3, 4, 17)]
    answers = job.answers(output)
    assert list(answers)[6:] == ["site", "weight", "input_label", "good"]
    assert answers["id"] == [TEXTS[k] for k in kept]
    assert answers["label"] == answers["input_label"] == [k % 10 for k in kept]
    assert answers["weight"] == columns["weight"][kept].tolist()
    assert answers["site"] == columns["site"][kept].tolist()
    assert answers["good"] == columns["good"][kept].tolist()
    assert sorted(job.refused()) == [TEXTS[k] for k in (3, 4, 17)]


def test_kept_columns_of_every_type_stay_what_they_are_in_parquet(job: Batching) -> None:
    columns = {
        "when": pa.array(range(4), pa.timestamp("us", "UTC")),
        "list": pa.array([[1], [], None, [2, 3]], pa.list_(pa.int16())),
        "struct": pa.array([{"a": 1}, None, {"a": None}, {"a": 4}]),
        "price": pa.array([decimal.Decimal("1.50")] * 4),
        "word": pa.array(["a", None, "a", "b"]).dictionary_encode(),
        "uuid": pa.array([one.bytes for one in UUIDS[:4]], pa.uuid()),
        "none": pa.nulls(4, pa.int32()),
    }
    job.parquet(image=pa.array([encoded(k) for k in range(4)]), **columns)
    job.batch("in.parquet", "out.parquet", "--keep-columns", ",".join(columns))
    table = pq.read_table(job.folder / "out.parquet")
    for name, column in columns.items():
        assert table[name].to_pylist() == column.to_pylist(), name
        if name != "word":
            assert table.schema.field(name).type == column.type


def test_nulls_of_kept_columns_are_nan_or_empty_in_an_archive(job: Batching) -> None:
    job.parquet(
        image=pa.array([encoded(k) for k in range(3)]),
        number=pa.array([1, None, 3]),
        word=pa.array(["a", None, "c"]),
        truth=pa.array([True, None, False]),
    )
    job.batch("in.parquet", "out.npz", "--keep-columns", "number,word,truth")
    answers = job.answers()
    assert answers["word"] == ["a", "", "c"]
    np.testing.assert_array_equal(answers["number"], [1, np.nan, 3])
    np.testing.assert_array_equal(answers["truth"], [1, np.nan, 0])


@pytest.mark.parametrize(
    ("source", "output", "words", "text"),
    [
        ("in.parquet", "out.npz", ["--keep-columns", "list"], "carried column list of type list<"),
        ("in.parquet", "out.npz", ["--keep-columns", "none"], "expected none; see --keep-columns"),
        ("in.parquet", "out.npz", ["--keep-columns", "label,input_label"], "two carried columns"),
        ("in.parquet", "out.npz", ["--id-column", "none"], "expected none; see --id-column"),
        ("in.parquet", "out.npz", ["--id-column", "list"], "whole numbers or text"),
        ("in.npz", "out.npz", ["--keep-columns", "none"], "expected none"),
        ("in.npz", "out.npz", ["--keep-columns", "short"], "one per row"),
        ("in.npz", "out.npz", ["--id-column", "short"], "one per row"),
        ("in.npy", "out.npz", ["--keep-columns", "label"], "a single array without a name"),
        ("in.parquet", "out.npz", ["--column", "none"], "expected none; see --column"),
        ("folder", "folder/out.parquet", [], "a file in the folder that is read"),
        ("empty", "out.parquet", [], "a folder without .parquet files"),
    ],
)
def test_columns_that_are_not_there_or_do_not_fit_are_one_line(
    job: Batching, source: str, output: str, words: list[str], text: str
) -> None:
    (job.folder / "empty").mkdir()
    pictures = [encoded(k) for k in range(3)]
    for name in ("in.parquet", "folder/a.parquet"):
        write(job.folder / name, image=pictures, label=[0, 1, 2], input_label=[1, 2, 3], list=[[1], [2], [3]])
    job.save(images=images(range(3)), short=np.arange(2))
    np.save(job.folder / "in.npy", images(range(3)))
    before = job.files()
    assert text in job.batch(source, output, *words, code=2)
    assert job.files() == before
    assert job.fake.calls == []


# -- a folder of files -------------------------------------------------------------------------------


def test_a_partitioned_folder_is_one_table_in_order(repository: Path, job: Batching) -> None:
    folder = repository.parent / "data"
    whole = recorded(repository, write(repository.parent / "in.parquet", image=ENCODED, label=np.arange(24) // 8))
    for label, name in enumerate(NAMES):
        part = slice(8 * label, 8 * label + 5), slice(8 * label + 5, 8 * label + 8)
        for number, rows in enumerate(part):
            write(folder / f"label={name}" / f"part-{number}.parquet", image=ENCODED[rows], id=TEXTS[rows])
    (folder / "_SUCCESS").touch()
    (folder / ".crc").touch()
    (folder / "README.md").touch()
    write(folder / "_temporary" / "half.parquet", image=ENCODED)
    found = recorded(repository, folder)
    assert found.ids.tolist() == TEXTS
    assert found.labels is not None
    assert found.labels.tolist() == (np.arange(24) // 8).tolist()
    np.testing.assert_array_equal(found.outputs["a"], whole.outputs["a"])
    some = recorded(repository, folder, "--limit", 7)
    assert some.ids.tolist() == [TEXTS[k * 24 // 7] for k in range(7)]
    np.testing.assert_array_equal(some.outputs["a"], whole.outputs["a"][[k * 24 // 7 for k in range(7)]])


def test_batch_answers_a_partitioned_folder_and_carries_the_names_of_folders(job: Batching) -> None:
    for year in (2023, 2024):
        for site in ("a b", "c"):
            path = job.folder / "data" / f"year={year}" / f"site={site.replace(' ', '%20')}" / "0.parquet"
            write(path, image=[encoded(k) for k in range(3)])
    job.batch("data", "out.parquet", "--keep-columns", "year,site")
    answers = job.answers("out.parquet")
    assert answers["id"] == list(range(12))
    assert answers["label"] == [0, 1, 2] * 4
    assert answers["year"] == [2023] * 6 + [2024] * 6
    assert answers["site"] == (["a b"] * 3 + ["c"] * 3) * 2


def test_files_of_a_folder_may_differ_in_types_and_in_columns(job: Batching) -> None:
    write(job.folder / "data" / "0.parquet", id=pa.array([1, 2], pa.int32()), image=[encoded(1), encoded(2)])
    write(job.folder / "data" / "1.parquet", id=pa.array([2**40]), image=pa.array([encoded(3)], pa.binary_view()))
    write(job.folder / "data" / "2.parquet", id=pa.array([4]), extra=pa.array([5]))
    write(job.folder / "data" / "3.parquet", id=pa.array([], pa.int64()), image=pa.array([], pa.binary()))
    job.batch("data", "out.parquet", "--keep-columns", "extra", code=REFUSED)
    assert job.answers("out.parquet")["id"] == [1, 2, 2**40]
    assert job.refused() == {4: f"{job.folder / 'data'} row 3: got null"}
    write(job.folder / "data" / "4.parquet", id=["x"], image=[encoded(1)])
    assert "do not go together" in job.batch("data", "no.npz", code=2)
    (job.folder / "data" / "4.parquet").write_bytes(b"PAR1")
    assert "4.parquet: got a file pyarrow cannot read" in job.batch("data", "no.npz", code=2)


def test_a_file_whose_name_is_no_text_is_one_line(job: Batching) -> None:
    write(job.folder / "data" / "year=1" / "\udcff.parquet", image=[encoded(1)])
    assert "rename it" in job.batch("data", "no.npz", code=2)


def test_a_recording_of_another_column_is_none_to_go_on_with(
    repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RecordingPool, "piece_rows", lambda self: 4)
    data = write(repository.parent / "in.parquet", group=None, image=[*ENCODED[:-1], b"?"], other=ENCODED)
    assert "row 23" in refusal(repository, capsys, data)
    assert "--restart" in refusal(repository, capsys, data, "--column", "other")


# -- memory ------------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_row_group(tmp_path: Path) -> None:
    pool = pa.default_memory_pool()
    values = [np.random.default_rng(k).bytes(20_000) for k in range(2000)]
    peaks = []
    for rows in (400, 2000):
        path = tmp_path / f"{rows}.parquet"
        # One row group, in pages of about a megabyte.
        pq.write_table(pa.table({"image": values[:rows]}), path, write_batch_size=50)
        table = parquet_table(path)
        before = pool.bytes_allocated()
        held = [pool.bytes_allocated() for _ in table.batches(["image"], size=32)]
        assert len(held) >= rows / 32
        peaks.append(max(held) - before)
    assert peaks[1] < 1.5 * peaks[0] < 10e6, peaks


def test_pieces_of_large_pictures_are_small_and_the_same_when_a_run_goes_on(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write(repository.parent / "in.parquet", image=ENCODED)
    row_bytes = parquet_table(data).row_bytes("image")
    monkeypatch.setattr(parquet, "PIECE_BYTES", 5 * row_bytes)
    with opened_pool(["a"], repository) as pool:
        source = source_for(pool, RecordOptions(data=str(data)))
        wanted = np.arange(1, ROWS)
        cuts = [(piece.first, piece.stop) for piece in source.pieces(wanted, 0, 256)]
        assert cuts == [(0, 5), (5, 10), (10, 15), (15, 20), (20, 23)]
        assert [(piece.first, piece.stop) for piece in source.pieces(wanted, 10, 256)] == cuts[2:]


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    group=st.integers(1, 5),
    size=st.integers(1, 6),
    share=st.lists(st.booleans(), min_size=40, max_size=40),
)
def test_wanted_rows_are_found_however_files_are_cut(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], group: int, size: int, share: list[bool]
) -> None:
    total = sum(sizes)
    if not total:
        return
    folder = tmp_path_factory.mktemp("cut")
    start = 0
    for number, rows in enumerate(sizes):
        write(folder / f"{number}.parquet", group=group, x=pa.array(range(start, start + rows), pa.int64()))
        start += rows
    table = parquet_table(folder)
    wanted = np.flatnonzero(share[:total])
    got = [batch.column(0).to_pylist() for batch in table.batches(["x"], size=size, wanted=wanted)]
    assert [value for part in got for value in part] == wanted.tolist()
    assert all(0 < len(part) <= size for part in got)
    assert table.whole("x").to_pylist() == list(range(total))
