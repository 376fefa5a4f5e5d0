from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.cli.record_members import opened_pool
from orchestrator.errors import DataError


@pytest.mark.parametrize("url", [None, "127.0.0.1:1"])
@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["./a", "a"], r"got './a', expected names of members"),
        (["a/"], r"got 'a/', expected"),
        (["a", "../b", "b c"], r"got '../b', 'b c', expected"),
        (["a" * 129], "128 letters"),
        (["a", "ensemble"], "got ensemble, expected another name"),
        (["a", "a"], "a more than once"),
        ([], "got none"),
    ],
)
def test_names_that_plan_would_refuse_are_not_recorded(
    tmp_path: Path, names: list[str], said: str, url: str | None
) -> None:
    with pytest.raises(DataError, match=said), opened_pool(names, tmp_path, url=url):
        pass
