"""Records files put together, and what keeps them apart."""

import dataclasses
import itertools
import json
import tracemalloc
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.__main__ import run
from orchestrator.errors import DataError
from orchestrator.planner.dataset_split import records_of_rows
from orchestrator.planner.records import Records, records_from_path, write_records
from orchestrator.recording.join import join_records
from orchestrator.spec import Preprocess
from tests.commands import printed_by
from tests.planner.builders import made_records
from tests.recording.builders import write_folder, write_member


def part(records: Records, *, members: str = "", rows: Any = slice(None), **changes: Any) -> Records:
    """Some members and rows of records."""
    of_rows = records_of_rows(records, np.arange(records.rows)[rows])
    names = members or records.outputs
    of_members = {
        "outputs": {name: of_rows.outputs[name] for name in names},
        "cost": {name: of_rows.cost[name] for name in names},
    }
    return dataclasses.replace(of_rows, **{**of_members, **changes})


def joined(tmp_path: Path, *files: Records, **options: Any) -> Records:
    """What the files come to as one."""
    paths = []
    for number, file in enumerate(files):
        write_records(file, tmp_path / f"{number}.npz")
        paths.append(tmp_path / f"{number}.npz")
    join_records(paths, tmp_path / "joined.npz", **options)
    return records_from_path(tmp_path / "joined.npz")


def assert_equal(found: Records, expected: Records) -> None:
    """The same rows, whatever order they are in."""
    order, wanted = np.argsort(found.ids), np.argsort(expected.ids)
    assert np.array_equal(found.ids[order], expected.ids[wanted])
    assert (found.labels is None) == (expected.labels is None)
    if found.labels is not None and expected.labels is not None:
        assert np.array_equal(found.labels[order], expected.labels[wanted])
    assert found.cost == expected.cost
    assert set(found.outputs) == set(expected.outputs)
    for name, scores in expected.outputs.items():
        assert np.array_equal(found.outputs[name][order], scores[wanted]), name


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 1000),
    rows=st.integers(2, 30),
    text=st.booleans(),
    labelled=st.sampled_from(["all", "first", "none"]),
    cuts=st.lists(st.integers(1, 29), max_size=2),
)
def test_files_cut_by_rows_and_members_in_any_order_come_together_again(
    tmp_path: Path, seed: int, rows: int, text: bool, labelled: str, cuts: list[int]
) -> None:
    rng = np.random.default_rng(seed)
    made = made_records(seed, rows=rows, members=3)
    made = dataclasses.replace(made, ids=np.array([f"r{i}" for i in range(rows)]) if text else made.ids * 7 - 3)
    files = []
    for name in made.outputs:
        bounds = sorted({0, rows, *(cut for cut in cuts if cut < rows)})
        order = rng.permutation(rows)
        for first, stop in itertools.pairwise(bounds):
            known = labelled == "all" or (labelled == "first" and name == "a")
            changes = {} if known else {"labels": None}
            files.append(part(made, members=name, rows=order[first:stop], **changes))
    expected = dataclasses.replace(made, labels=None) if labelled == "none" else made
    assert_equal(joined(tmp_path, *files), expected)


def test_rows_keep_the_order_of_the_first_file(tmp_path: Path) -> None:
    made = made_records(0, rows=20, members=2)
    order = np.random.default_rng(0).permutation(20)
    found = joined(tmp_path, part(made, members="b", rows=order), part(made, members="a"))
    assert np.array_equal(found.ids, made.ids[order])
    assert list(found.outputs) == ["b", "a"]


def test_what_the_files_say_alike_is_said_of_the_joined_one(tmp_path: Path) -> None:
    made = made_records(0, members=2)
    shared = {"data": "val", "data_sha256": "ab", "asked": "onnxruntime", "class_names": ["x", "y", "z"]}
    shared |= {"skipped_rows": 1, "skipped": {"99": "broken"}, "recorded_with": {"onnxruntime": "1"}}
    one = part(made, members="a", meta={**shared, "members": {"a": {"sha256": "1"}}})
    other = part(made, members="b", meta={**shared, "members": {"b": {"sha256": "2"}}})
    both = {**shared, "members": {"a": {"sha256": "1"}, "b": {"sha256": "2"}}}
    assert joined(tmp_path, one, other).meta == both


def test_rows_of_two_recordings_keep_both_origins_and_list_what_neither_has(tmp_path: Path) -> None:
    made = made_records(0, rows=40, members=1)
    first = {"data": "one", "data_sha256": "aa", "skipped_rows": 2, "skipped": {"25": "broken", "50": "broken"}}
    second = {"data": "two", "data_sha256": "bb", "skipped_rows": 0, "skipped": {}}
    found = joined(tmp_path, part(made, rows=slice(20), meta=first), part(made, rows=slice(20, 40), meta=second))
    assert found.meta["data"] == "one + two"
    assert [origin["data_sha256"] for origin in found.meta["joined_rows"]] == ["aa", "bb"]
    assert found.meta["data_sha256"] not in ("aa", "bb")
    # Row 25, which the first file lacks, is in the second one.
    assert (found.meta["skipped_rows"], found.meta["skipped"]) == (1, {"50": "broken"})


@pytest.mark.parametrize("kind", ["text", "numbers"])
def test_groups_go_with_their_rows(tmp_path: Path, kind: str) -> None:
    made = made_records(0, rows=40, members=2)
    groups = np.arange(40) // 3 if kind == "numbers" else np.array([f"g{row // 3}" for row in range(40)])
    made = dataclasses.replace(made, groups=groups)
    files = [part(made, members=name, rows=rows) for name in "ab" for rows in (slice(9), slice(9, 40))]
    found = joined(tmp_path, *files[::-1])
    assert dict(zip(found.ids, found.groups, strict=True)) == dict(zip(made.ids, groups, strict=True))


def labels_swapped(made: Records) -> dict[str, Any]:
    assert made.labels is not None
    return {"labels": (made.labels + 1) % 3}


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        ({"members": "a"}, {"members": "b", "change": labels_swapped}, r"1\.npz: got label \d of row 0, and \d"),
        ({"members": "a"}, {"members": "b", "rows": slice(5)}, "b: got no scores of 35 of 40 rows, id 5, 6"),
        ({"members": "a"}, {}, "member a: got scores of 40 rows more than once"),
        ({"rows": slice(9)}, {"rows": slice(8, 40)}, "member a: got scores of 1 rows more than once, id 8"),
        ({"rows": slice(9)}, {"rows": slice(9, 40), "labels": None}, "no label of 31 of 40 rows, id 9"),
        ({"rows": slice(9), "groups": np.arange(9)}, {"rows": slice(9, 40)}, "no group of 31 of 40 rows, id 9"),
        ({"members": "a", "groups": np.arange(40)}, {"members": "b", "groups": np.arange(40) // 2},
         r"1\.npz: got group 0 of row 1, and 1 in a file before it, expected the same group"),
        ({"rows": slice(9), "groups": np.arange(9)}, {"rows": slice(9, 40), "groups": np.full(31, "g")},
         "groups that are numbers in .*0.npz, text in"),
        ({"members": "a", "meta": {"data_sha256": "aa"}}, {"members": "b", "meta": {"data_sha256": "bb"}},
         "other data .data_sha256. under the same ids than in .*0.npz.*`by_id`"),
        ({"members": "a", "meta": {"class_names": ["x", "y", "z"]}},
         {"members": "b", "meta": {"class_names": ["z", "y", "x"]}}, "other class names or another order of them"),
        ({"members": "a", "meta": {"cost_unit": "ms"}}, {"members": "b"}, "costs in MACs, and in ms"),
        ({"rows": slice(9)}, {"rows": slice(9, 40), "change": lambda made: {"cost": {"a": 1.0, "b": 9.0}}},
         "cost of b: got 3 in .*0.npz, 9 in .*1.npz"),
        ({"rows": slice(9), "meta": {"members": {"a": {"sha256": "1"}}}},
         {"rows": slice(9, 40), "meta": {"members": {"a": {"sha256": "2"}}}}, "another sha256 of a than in"),
        ({"rows": slice(9)}, {"rows": slice(9, 40), "ids": np.array([f"{i}" for i in range(31)])},
         "ids that are numbers in .*0.npz, text in"),
        ({"members": "a"}, {"members": "b", "change": lambda made: {"outputs": {"b": np.zeros((40, 4))}}},
         "3 classes in .*0.npz, 4 in"),
        ({"rows": slice(9)}, {"rows": slice(9, 40), "meta": {"members": [1]}}, "other kinds of members"),
        ({"rows": slice(9)}, {"rows": slice(9, 40), "meta": {"members": {"a": 1}}}, "other kinds of members"),
    ],
)  # fmt: skip
def test_what_contradicts_is_one_line_and_nothing_is_written(
    tmp_path: Path, first: dict[str, Any], second: dict[str, Any], says: str
) -> None:
    made = made_records(1, rows=40, members=2)

    def one(changes: dict[str, Any]) -> Records:
        left = dict(changes)
        change: Callable[[Records], dict[str, Any]] = left.pop("change", lambda _: {})
        return part(made, **{**left, **change(made)})

    with pytest.raises(DataError, match=says) as caught:
        joined(tmp_path, one(first), one(second))
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"0.npz", "1.npz"}


def test_rows_that_a_member_lacks_are_left_out_on_request(tmp_path: Path) -> None:
    made = made_records(2, rows=40, members=2)
    short = {"data_sha256": "bb", "skipped_rows": 1, "skipped": {"3": "no finite scores"}}
    files = [
        part(made, members="a", meta={"data_sha256": "aa", "skipped_rows": 0, "skipped": {}}),
        part(made, members="b", rows=[i for i in range(40) if i != 3], meta=short),
    ]
    found = joined(tmp_path, *files, skip_bad=True)
    assert_equal(found, part(made, rows=[i for i in range(40) if i != 3]))
    assert (found.meta["skipped_rows"], found.meta["skipped"]) == (1, {"3": "no finite scores"})


def test_nothing_in_common_is_refused_even_then(tmp_path: Path) -> None:
    made = made_records(2, rows=40, members=2)
    apart = [part(made, members="a", rows=slice(20)), part(made, members="b", rows=slice(20, 40))]
    with pytest.raises(DataError, match="no row that every member has"):
        joined(tmp_path, *apart, skip_bad=True)


def test_other_data_under_the_same_ids_are_joined_where_the_user_says_so(tmp_path: Path) -> None:
    made = made_records(3, members=2)
    files = [part(made, members=name, meta={"data_sha256": name * 2}) for name in "ab"]
    assert_equal(joined(tmp_path, *files, by_id=True), made)


@pytest.mark.parametrize("kind", ["float64", "int16", "fortran", "packed"])
def test_arrays_that_were_written_elsewhere_are_read_like_any(tmp_path: Path, kind: str) -> None:
    made = made_records(4, members=2)
    scores = np.round(made.outputs["b"])
    stored = {"float64": scores.astype(np.float64), "int16": scores.astype(np.int16)}
    arrays = {"ids": made.ids, "outputs/b": stored.get(kind, np.asfortranarray(scores)), "cost/b": np.float64(3)}
    (np.savez_compressed if kind == "packed" else np.savez)(tmp_path / "b.npz", **arrays)
    write_records(part(made, members="a"), tmp_path / "a.npz")
    join_records([tmp_path / "a.npz", tmp_path / "b.npz"], tmp_path / "both.npz")
    assert_equal(
        records_from_path(tmp_path / "both.npz"),
        dataclasses.replace(made, outputs={"a": made.outputs["a"], "b": scores}),
    )


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"outputs/b": np.full((40, 3), np.nan)}, "outputs of b: got NaN, infinity or no finite score, id 0, 1"),
        ({"outputs/b": np.array([["x"] * 3] * 40)}, "outputs of b: got dtype <U1"),
        ({"outputs/b": np.zeros((39, 3))}, r"40 ids of shape \[40\], expected 39"),
        ({"cost/b": np.float64(-1)}, "costs b -1"),
        ({"cost/c": np.float64(1)}, "got costs of c without outputs"),
        ({"ids": np.zeros(40, int)}, "an id more than once"),
        ({"labels": np.full(40, 7)}, "labels from 0 to 7|labels from 7 to 7|labels from"),
        ({"meta": np.array("{")}, "no JSON"),
    ],
)
def test_a_file_with_a_fault_is_named(tmp_path: Path, arrays: dict[str, Any], says: str) -> None:
    made = made_records(5, members=2)
    write_records(part(made, members="a"), tmp_path / "a.npz")
    good = {"ids": made.ids, "outputs/b": made.outputs["b"], "cost/b": np.float64(3)}
    np.savez(tmp_path / "b.npz", **{**good, **arrays})
    with pytest.raises(DataError, match=says):
        join_records([tmp_path / "a.npz", tmp_path / "b.npz"], tmp_path / "both.npz")
    assert {path.name for path in tmp_path.iterdir()} == {"a.npz", "b.npz"}


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    made = made_records(5, members=2)
    write_records(part(made, members="a"), tmp_path / "a.npz")
    write_records(part(made, members="b"), tmp_path / "b.npz")
    whole = (tmp_path / "b.npz").read_bytes()
    at = whole.index(made.outputs["b"].tobytes()[:16])
    (tmp_path / "b.npz").write_bytes(whole[:at] + bytes(8) + whole[at + 8 :])
    with pytest.raises(DataError, match=r"b\.npz: got a file numpy cannot read"):
        join_records([tmp_path / "a.npz", tmp_path / "b.npz"], tmp_path / "both.npz")


def test_scores_pass_through_memory_in_pieces(tmp_path: Path) -> None:
    rows, classes = 60_000, 100
    rng = np.random.default_rng(0)
    ids = np.arange(rows)
    for name in ("a", "b"):
        scores = rng.random((rows, classes), np.float32)
        order = rng.permutation(rows) if name == "b" else ids
        made = Records(ids=order, labels=None, outputs={name: scores}, cost={name: 1.0})
        write_records(made, tmp_path / f"{name}.npz")
    del scores, made
    tracemalloc.start()
    join_records([tmp_path / "a.npz", tmp_path / "b.npz"], tmp_path / "both.npz")
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # One member alone is 24 MB.
    assert peak_bytes < 18e6


def test_class_names_stay_where_a_part_has_none_or_writes_them_in_the_other_form(tmp_path: Path) -> None:
    made = made_records(0, rows=20, members=3)
    names = ["caf\u00e9", "y", "z"]
    other = [unicodedata.normalize("NFD", name) for name in names]
    found = joined(
        tmp_path,
        part(made, members="a"),
        part(made, members="b", meta={"class_names": names}),
        part(made, members="c", meta={"class_names": other}),
    )
    assert found.meta["class_names"] == names
    with pytest.raises(DataError, match="meta with other kinds of class_names"):
        joined(tmp_path, part(made, members="a"), part(made, members="b", meta={"class_names": 3}))


# -- the command ---------------------------------------------------------------------------------------


SIX = Preprocess(mode="RGB", height_px=6, width_px=6)


class Files:
    """Members a and b on disk, pictures for them, and the command."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.capsys = capsys
        self.joined = folder / "joined.npz"
        write_member(folder / "repository", "a", seed=1)
        write_member(folder / "repository", "b", seed=2)
        write_folder(folder / "pictures", each=12)

    def record(self, members: str, name: str, *options: str, data: str = "pictures") -> str:
        words = ["record", "--members", members, "--data", str(self.folder / data), "-o", self.path(name)]
        assert run([*words, "--repository", str(self.folder / "repository"), *options]) == 0
        self.capsys.readouterr()
        return self.path(name)

    def path(self, name: str) -> str:
        return str(self.folder / f"{name}.npz")

    def join(self, *words: str, code: int = 0) -> str:
        """Runs it; gives stdout, or the one line on stderr where it failed."""
        return printed_by(["record", "--join", *words], self.capsys, code=code)


@pytest.fixture
def files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Files:
    return Files(tmp_path, capsys)


def test_members_recorded_apart_join_to_the_bytes_of_one_recording(files: Files) -> None:
    apart = [files.record(name, name) for name in ("a", "b")]
    together = files.record("a,b", "together")
    said = files.join(*apart, "-o", files.path("joined"))
    assert files.joined.read_bytes() == Path(together).read_bytes()
    assert "joined.npz: 36 rows, 3 classes, 2 members" in said
    assert "  a: accuracy " in said
    words = ["--max-mean-cost-share", "1", "--allow-near-chance", "--repository", str(files.folder / "repository")]
    assert run(["plan", files.path("joined"), *words]) == 0


def test_json_says_what_a_recording_says_and_what_was_left_out(files: Files) -> None:
    whole, fewer = files.record("a", "whole"), files.record("b", "fewer", "--limit", "18")
    assert "got no scores of 18 of 36 rows" in files.join(whole, fewer, "-o", files.path("joined"), code=2)
    summary = json.loads(files.join(whole, fewer, "-o", files.path("joined"), "--skip-bad", "--json"))
    found = records_from_path(files.joined)
    assert (summary["rows"], found.rows, summary["left_out_rows"]) == (18, 18, 18)
    assert summary["joined"] == [whole, fewer]
    left_out, other_data = summary["notes"]
    assert left_out == "18 rows left out that not every member has"
    assert "share 18 ids and were recorded from other data" in other_data
    right = (found.outputs["b"].argmax(axis=1) == found.labels).mean()
    assert summary["members"]["b"]["accuracy"] == pytest.approx(right)


def test_members_that_take_other_rows_are_told_to_be_joined(files: Files) -> None:
    write_member(files.folder / "repository", "wide", seed=3, side=6, preprocess=SIX)
    words = ["record", "a", "wide", "--data", str(files.folder / "pictures"), "-o", files.path("x")]
    assert run([*words, "--repository", str(files.folder / "repository")]) == 2
    assert "record them apart, then join the files with `committee record --join`" in files.capsys.readouterr().err
    # The same pictures in two sizes are the same rows.
    both = [files.record(name, name) for name in ("a", "wide")]
    files.join(*both, "-o", files.path("joined"))
    assert list(records_from_path(files.joined).outputs) == ["a", "wide"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["A", "-o", "OUT"], "records to join: got 1 files, expected two or more"),
        (["A", "B", "-o", "A"], "the same file twice"),
        (["A", "A", "-o", "OUT"], "the same file twice"),
        (["A", "B", "-o", "out.json"], "expected a file name ending in .npz"),
        (["A", "missing.npz", "-o", "OUT"], "missing.npz: got no such file"),
        (["A", "B", "-o", "OUT", "--data", "x", "--limit", "3"], "got --data, --limit, expected records files"),
        (["A", "B", "-o", "OUT", "--repository", "x"], "got --repository"),
    ],
)
def test_what_cannot_be_joined_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    places = {name: str(tmp_path / f"{name}.npz") for name in ("A", "B", "OUT")}
    for name in ("A", "B"):
        made = made_records(0, members=1, costs={name: 1.0})
        write_records(made, Path(places[name]))
    assert run(["record", "--join", *(places.get(word, word) for word in words)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert says in err
    assert {path.name for path in tmp_path.iterdir()} == {"A.npz", "B.npz"}


@pytest.mark.parametrize(
    ("words", "says"), [(["a"], "got no --data"), (["a", "--data", "x", "--by-id"], "got --by-id without --join")]
)
def test_without_join_there_are_data_to_ask_about(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    assert run(["record", *words, "-o", str(tmp_path / "x.npz")]) == 2
    assert says in capsys.readouterr().err
