import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from orchestrator.errors import DataError
from orchestrator.planner.records import Records, records_from_path, write_records

GOOD = {
    "ids": np.arange(3),
    "labels": np.array([0, 1, 1]),
    "outputs": {"m": np.zeros((3, 2), np.float32)},
    "cost": {"m": 2.0},
    "meta": {"data": "x"},
}


def test_records_read_back_as_written_with_numpy_alone(tmp_path: Path) -> None:
    path = tmp_path / "r.npz"
    write_records(Records(**GOOD), path)
    back = records_from_path(path)
    assert np.array_equal(back.outputs["m"], GOOD["outputs"]["m"])
    assert (back.cost, back.meta, back.rows, back.classes) == ({"m": 2.0}, {"data": "x"}, 3, 2)
    with np.load(path) as stored:
        assert set(stored.files) == {"ids", "labels", "outputs/m", "cost/m", "meta"}
    assert [p.name for p in tmp_path.iterdir()] == ["r.npz"]


def test_nothing_in_records_can_be_changed_and_what_was_handed_in_still_can() -> None:
    outputs, meta = {"m": np.zeros((3, 2), np.float32)}, {"members": {"m": {}}}
    records = Records(**{**GOOD, "outputs": outputs, "meta": meta})
    for changed in (records.outputs, records.cost, records.meta, records.meta["members"]["m"]):
        with pytest.raises(TypeError, match="cannot be changed"):
            changed["m"] = None
    with pytest.raises(ValueError, match="read-only"):
        records.outputs["m"][0] = 1
    outputs["m"][0] = 1
    meta["members"]["m"]["random_weights"] = True
    assert records.meta == pickle.loads(pickle.dumps(records)).meta == {"members": {"m": {}}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"outputs": {}}, "no member outputs"),
        ({"outputs": {"m": np.zeros((3, 2)), "n": np.zeros((2, 2))}, "cost": {"m": 1, "n": 1}}, "one \\(rows"),
        ({"ids": np.array([0, 1, 1])}, "more than once"),
        ({"ids": np.arange(2)}, "2 ids"),
        ({"ids": np.array([np.nan] * 3)}, "ids of dtype float64"),
        ({"ids": np.array([1j, 2j, 3j])}, "ids of dtype complex128"),
        ({"ids": np.arange(3).astype("datetime64[D]")}, "ids of dtype datetime64"),
        ({"ids": np.array([(1,), (2,), (3,)], [("a", int)])}, "ids of dtype"),
        ({"ids": np.array(["a", "b\ud800", "c"])}, r"no text: 'b\\ud800'"),
        ({"labels": np.array([0, 1, 2])}, "labels from 0 to 2"),
        ({"labels": np.array([-1, 1, 1])}, "labels from -1"),
        ({"cost": {}}, "no cost of m"),
        ({"cost": {"m": 1.0, "x": 2.0}}, "costs of x without outputs"),
        ({"cost": {"m": float("nan")}}, "costs m nan"),
        ({"cost": {"m": -1.0}}, "costs m -1"),
        ({"cost": {"m": 1e307}}, "costs m 1e\\+307, expected 0, or numbers from 1e-30 to 1e\\+30"),
        ({"labels": np.zeros(3)}, "dtype float64"),
        ({"labels": np.zeros((3, 1), int)}, "shape \\[3, 1\\]"),
        ({"outputs": {"m": np.zeros((3, 1), np.float32)}}, "at least two classes"),
        ({"outputs": {"m": np.zeros((0, 2), np.float32)}}, "expected rows"),
        ({"outputs": {"m": np.zeros(3, np.float32)}}, "one \\(rows"),
    ],
)
def test_parts_that_do_not_fit_are_one_line(change: dict, said: str) -> None:
    with pytest.raises(DataError, match=said):
        Records(**{**GOOD, **change})


def test_missing_truncated_and_foreign_files_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        records_from_path(tmp_path / "none.npz")
    write_records(Records(**GOOD), tmp_path / "whole.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:100])
    with pytest.raises(DataError, match="numpy cannot read"):
        records_from_path(tmp_path / "cut.npz")
    np.save(tmp_path / "single.npy", np.zeros(3))
    (tmp_path / "single.npy").rename(tmp_path / "single.npz")
    with pytest.raises(DataError, match="a single array"):
        records_from_path(tmp_path / "single.npz")
    np.savez(tmp_path / "foreign.npz", x=np.zeros(1))
    with pytest.raises(DataError, match="no ids"):
        records_from_path(tmp_path / "foreign.npz")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_output_that_is_no_number_is_named_with_its_rows(tmp_path: Path, value: float) -> None:
    outputs = np.zeros((3, 2), np.float32)
    outputs[1, 0] = value
    with pytest.raises(DataError, match=r"outputs of m: got .* 1 of 3 rows, id 1"):
        Records(**{**GOOD, "outputs": {"m": outputs}})


def test_one_minus_infinity_is_a_score_and_a_row_of_them_is_none() -> None:
    outputs = np.zeros((3, 2), np.float32)
    outputs[:, 0] = -np.inf
    Records(**{**GOOD, "outputs": {"m": outputs}})
    outputs[2] = -np.inf
    with pytest.raises(DataError, match="id 2"):
        Records(**{**GOOD, "outputs": {"m": outputs}})


def test_equal_records_are_equal_bytes_and_text_ids_survive(tmp_path: Path) -> None:
    records = Records(**{**GOOD, "ids": np.array(["a/1.png", "b/ä.png", "c"])})
    for name in ("one.npz", "two.npz"):
        write_records(records, tmp_path / name)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.npz") as archive:
        # Two files of one second would be equal with real times in them too.
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    assert records_from_path(tmp_path / "one.npz").ids.tolist() == ["a/1.png", "b/ä.png", "c"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"labels": np.zeros(3)}, "labels of dtype float64"),
        ({"meta": np.array("{")}, "meta: got no JSON"),
        ({"meta": np.array("[1]")}, "meta: got JSON list"),
        ({"meta": np.array("[" * 100_000)}, "meta: got no JSON .*nested too deep"),
        ({"meta": np.array('{"data": "\\ud800"}')}, "meta: got no JSON .*half a character"),
        ({"outputs/m": np.full((3, 2), 1e300)}, "outputs of m: got NaN, infinity"),
        ({"cost/m": np.zeros(2)}, "cost of m"),
        ({"outputs/m": np.array([["x", "y"]] * 3)}, "outputs of m: got dtype"),
        ({"outputs/n": np.zeros((2, 2))}, "outputs of shapes"),
    ],
)
def test_a_file_written_elsewhere_with_a_fault_is_one_line_with_its_name(
    tmp_path: Path, arrays: dict, said: str
) -> None:
    good = {"ids": np.arange(3), "outputs/m": np.zeros((3, 2)), "cost/m": 1}
    np.savez(tmp_path / "r.npz", **good)
    assert records_from_path(tmp_path / "r.npz").cost == {"m": 1.0}
    np.savez(tmp_path / "r.npz", **(good | arrays))
    with pytest.raises(DataError, match=said) as caught:
        records_from_path(tmp_path / "r.npz")
    assert str(tmp_path / "r.npz") in str(caught.value)


def test_the_documented_snippets_write_and_read_records_with_numpy_alone(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "records.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, re.S))
    assert set(re.findall(r"^(?:import|from) (\w+)", code, re.M)) == {"json", "numpy"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(
        r"small: accuracy 0.\d+, cost 1000000\nlarge: accuracy 0.\d+, cost 20000000\n", done.stdout
    )
    found = records_from_path(tmp_path / "records.npz")
    assert (found.rows, found.classes, found.cost) == (500, 3, {"small": 1e6, "large": 2e7})
