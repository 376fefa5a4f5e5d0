"""Networks that several tests export."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small networks as transformers stores them."""
    # Here, because this file is read for the other tiers too, and PyTorch takes seconds to import.
    from tests.export.small_models import save_convnext, save_vit

    folder = tmp_path_factory.mktemp("models")
    save_convnext(folder / "cheap", size_px=32)
    save_vit(folder / "dear")
    return folder
