import json
from pathlib import Path

import pandas as pd
import pytest

from perf.harness.machine import write_json
from perf.load.inputs import different_rows
from perf.studies.live import document_from_passes, routes_in, spread_of, table_from_passes
from tests.batch.fixtures import encoded
from tests.cli.digits import fake_server, write_plan
from tests.fakes.kserve_fronts import GrpcFront
from tests.rows.broken_pictures import BAD_EXIF

PASSES = pd.DataFrame(
    {"route": "r", "concurrency": 4, "requests_per_s": [90.0, 100.0, 120.0], "p50_ms": 1.0, "p99_ms": 2.0}
)


def test_spread_is_the_range_over_the_median() -> None:
    assert spread_of(PASSES.requests_per_s) == pytest.approx(0.3)


def test_results_name_the_machine_and_read_back(tmp_path: Path) -> None:
    write_json(document_from_passes(PASSES, triton_version="v"), tmp_path / "b" / "results.json")
    document = json.loads((tmp_path / "b" / "results.json").read_text())
    assert document["machine"]["cpu"]
    (cell,) = document["cells"]
    assert cell.pop("spread") == pytest.approx(0.3)
    figures = {name: PASSES[name].tolist() for name in ("requests_per_s", "p50_ms", "p99_ms")}
    assert cell == {"route": "r", "concurrency": 4, **figures}
    assert table_from_passes(PASSES).row_count == 1


def test_averaging_steps_are_not_routes() -> None:
    names = routes_in(Path(__file__).parents[3] / "model_repository")
    assert "digits_cascade" in names
    assert "digits_ensemble_mean" not in names


def test_pictures_that_break_their_decoder_are_left_out_of_the_rows(tmp_path: Path) -> None:
    repository = write_plan(tmp_path / "repository")
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, data in (("a.png", encoded(4)), ("b.jpg", BAD_EXIF["text"]), ("c.png", encoded(6))):
        (folder / name).write_bytes(data)
    with GrpcFront(fake_server()) as front:
        rows = different_rows(front.address, "digits_cascade", data=str(folder), repository=repository, at_most=3)
    assert rows["image"][:, 0, 0, 0].astype(int).tolist() == [4, 6]
