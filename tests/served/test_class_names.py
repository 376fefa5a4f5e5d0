"""Class names from records to a client: what Triton's classification extension and `committee infer` answer."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpcclient

from orchestrator.__main__ import run
from orchestrator.planner.records import records_from_path
from tests.recording.builders import rows_of, write_member
from tests.servers import running_server

pytestmark = pytest.mark.triton
WORDS = {"n01": "cat", "n02": "d\u00f6g, of any kind", "n03": "owl"}
CONFIG = """name: "{name}"
backend: "onnxruntime"
max_batch_size: 8
input [{{ name: "image", data_type: TYPE_UINT8, dims: [3, 4, 4] }}]
output [{{ name: "logits", data_type: TYPE_FP32, dims: [3], label_filename: "theirs.txt" }}]
instance_group [{{ count: 1, kind: KIND_CPU }}]
"""


def committee(*words: object) -> None:
    assert run(list(map(str, words))) == 0


def cascade_of(folder: Path, name: str, members: str, *options: object) -> None:
    """Records rows that the first member is right about, plans a cascade of all, and renders it."""
    repository = folder / "model_repository"
    images = rows_of(200)
    np.save(folder / "rows.npy", images)
    records, asked = folder / f"{name}.npz", ["--members", members, "--repository", repository, "-o"]
    committee("record", "--data", folder / "rows.npy", *asked, records)
    answers = records_from_path(records).outputs[members.partition(",")[0]].argmax(1)
    np.savez(folder / "rows.npz", images=images, labels=np.array(list(WORDS))[answers])
    committee("record", "--data", folder / "rows.npz", *asked, records, *options)
    plan = folder / f"{name}.json"
    goal = ("--max-mean-cost", 50, "--no-certify", "--name", name)
    committee("plan", records, *goal, "--repository", repository, "-o", plan)
    committee("render", plan, "--repository", repository)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("names")
    repository = folder / "model_repository"
    for seed, name in enumerate(("mapped", "theirs")):
        write_member(repository, name, seed=seed, labels=None, even=True, macs=10.0, max_batch_size=8)
    path = folder / "map.txt"
    path.write_text("".join(f"{name}\t{words}\n" for name, words in WORDS.items()), encoding="utf-8")
    cascade_of(folder, "from_map", "mapped", "--class-map", path)
    # A model that somebody serves already: a config by hand with a label file.
    (repository / "theirs/config.pbtxt").write_text(CONFIG.format(name="theirs"))
    (repository / "theirs/theirs.txt").write_bytes(b"katze\r\nhund\r\neule\r\n")
    cascade_of(folder, "from_file", "theirs", "--labels-by-order")
    return repository


@pytest.fixture(scope="module")
def address(repository: Path) -> Iterator[str]:
    with running_server(repository) as server:
        yield server.grpc_address


def classified(address: str, model: str, rows: np.ndarray) -> list[list[tuple[int, str]]]:
    """Classes by falling probability with their names, as Triton's classification extension has them."""
    tensor = grpcclient.InferInput("image", list(rows.shape), "UINT8")
    tensor.set_data_from_numpy(rows)
    wanted = grpcclient.InferRequestedOutput("probabilities", class_count=3)
    with grpcclient.InferenceServerClient(address) as client:
        found = client.infer(model, [tensor], outputs=[wanted]).as_numpy("probabilities")
    parts = [[word.decode().split(":", 2) for word in row] for row in found]
    return [[(int(number), name) for _, number, name in row] for row in parts]


@pytest.mark.parametrize(
    ("model", "names"), [("from_map", tuple(WORDS.values())), ("from_file", ("katze", "hund", "eule"))]
)
def test_a_served_cascade_classifies_by_name(address: str, model: str, names: tuple[str, ...]) -> None:
    for row in classified(address, model, rows_of(6)):
        assert sorted(row) == list(enumerate(names))


def test_infer_shows_the_names(
    address: str, repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "rows.npy", rows_of(3))
    # A member too, by the label file that its own config names.
    for model, names in (("from_map", tuple(WORDS.values())), ("theirs", ("katze", "hund", "eule"))):
        copy = shutil.copytree(repository, tmp_path / model)
        (copy / "theirs/manifest.json").unlink()
        committee(
            "infer", tmp_path / "rows.npy", "--model", model, "--url", address, "--repository", copy, "--json"
        )
        rows = json.loads(capsys.readouterr().out)["rows"]
        assert [row["label_name"] for row in rows] == [names[row["label"]] for row in rows]


def test_labels_are_matched_with_the_label_file_of_a_model_that_is_asked_on_a_server(
    address: str, repository: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(repository, tmp_path / "theirs")
    (copy / "theirs/manifest.json").unlink()
    names = np.array(["hund", "eule", "katze"] * 5)
    np.savez(tmp_path / "rows.npz", images=rows_of(15), labels=names)
    asked = ("--url", address, "--repository", copy, "--cost", "theirs=1")
    committee("record", "theirs", "--data", tmp_path / "rows.npz", *asked, "-o", tmp_path / "out.npz")
    found = records_from_path(tmp_path / "out.npz")
    assert found.labels.tolist() == [1, 2, 0] * 5
    assert found.meta["class_names"] == ["katze", "hund", "eule"]
