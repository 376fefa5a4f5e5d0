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


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small networks as transformers stores them."""
    # Here, because this file is read for the other tiers too, and PyTorch takes seconds to import.
    from tests.export.small_models import save_convnext, save_vit

    folder = tmp_path_factory.mktemp("models")
    save_convnext(folder / "cheap", size_px=32)
    save_vit(folder / "dear")
    return folder
