"""What every test shares: a GPU that is missing skips, or fails where one is required."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if torch.cuda.is_available():
        return
    if os.environ.get("SRGAN_FAST_REQUIRE_GPU") == "1":
        raise pytest.UsageError("SRGAN_FAST_REQUIRE_GPU=1, but torch sees no GPU")
    for item in marked:
        item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of benchmark images and community checkpoints, which the project does not ship."""
    folder = Path(os.environ.get("SRGAN_FAST_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no benchmark data: set SRGAN_FAST_SHARED_DATA to a folder that has Set5/ and weights/")
    return folder
