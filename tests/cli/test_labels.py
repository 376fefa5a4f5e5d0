"""Labels and ids as other people's data has them: read, or refused in one line that says what to do."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.cli.app import run
from orchestrator.cli.pictures import picture_bytes
from orchestrator.errors import DataError
from orchestrator.planner.records import Records, records_from_path
from tests.cli.recording import picture, png, rows_of, write_folder, write_member

# Sorted by code points, the decomposed \u00e9 comes before "f", the composed one behind "z".
ACCENTED = ("\u00e9clair", "fig", "zest")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_member(tmp_path / "repository", "a", labels=None)
    return tmp_path


def record(folder: Path, data: Path, *options: object, code: int = 0) -> Records | None:
    words = ["record", "a", "--data", data, "-o", folder / "out.npz", "--repository", folder / "repository"]
    assert run([str(word) for word in (*words, "--restart", *options)]) == code
    return records_from_path(folder / "out.npz") if code == 0 else None


def label_of_each(found: Records | None) -> dict[str, int]:
    """Label of each class name that the ids begin with, in normal form."""
    assert found is not None
    assert found.labels is not None
    names = [unicodedata.normalize("NFC", row_id.split("/")[0]) for row_id in found.ids.tolist()]
    return dict(zip(names, found.labels.tolist(), strict=True))


@pytest.mark.parametrize("kind", ["folder", "npz", "parquet"])
def test_classes_in_order_are_numbered_alike_in_either_form_of_unicode(folder: Path, kind: str) -> None:
    numbered = []
    for form in ("NFC", "NFD"):
        names = [unicodedata.normalize(form, name) for name in ACCENTED]
        data = folder / f"{form}.{kind}"
        ids = [f"{name}/{index}" for index, name in enumerate(names)]
        if kind == "folder":
            write_folder(data, names=tuple(names), each=1)
        elif kind == "npz":
            np.savez(data, images=rows_of(3), labels=names, ids=ids)
        else:
            pq.write_table(
                pa.table({"image": [png(picture(k)) for k in range(3)], "label": names, "id": ids}), data
            )
        numbered.append(label_of_each(record(folder, data)))
    assert numbered == [{"fig": 0, "zest": 1, "\u00e9clair": 2}] * 2


# -- files that are none -----------------------------------------------------------------------------


@pytest.mark.timeout(60)
@pytest.mark.parametrize("flat", [True, False])
def test_a_pipe_named_like_a_picture_is_refused_and_not_waited_for(
    folder: Path, capsys: pytest.CaptureFixture[str], flat: bool
) -> None:
    write_folder(folder / "pictures", each=1)
    data = folder / "pictures" / ("cat" if flat else "")
    pipe = folder / "pictures" / "cat" / "pipe.png"
    os.mkfifo(pipe)
    record(folder, data, code=2)
    assert "pipe.png: got a pipe, expected a regular file" in capsys.readouterr().err
    found = record(folder, data, "--skip-bad")
    assert found is not None
    assert list(found.meta["skipped"]) == [pipe.relative_to(data).as_posix()]
    with pytest.raises(DataError, match="got a pipe, expected a regular file"):
        picture_bytes(pipe, "picture")


@pytest.mark.parametrize("name", ["one.parquet", "many/one.parquet"])
def test_a_pipe_named_like_a_table_is_refused(folder: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (folder / "many").mkdir()
    os.mkfifo(folder / name)
    record(folder, folder / name.split("/")[0], code=2)
    assert capsys.readouterr().err.count("\n") == 1
