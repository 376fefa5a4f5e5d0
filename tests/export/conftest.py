"""Everything here needs PyTorch, transformers or whole graphs, so it stays out of the tier that takes a minute."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    # To read these files only to deselect everything in them would import PyTorch, which takes seconds.
    return True if "not export" in config.option.markexpr else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.export)
