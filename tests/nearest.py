"""Upscalers that cost nothing, for tests of all that is around the network; importable in a process that is started."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch


class Nearest:
    """What the job asks of an upscaler; each pixel becomes four, after `first` was called."""

    scale, radius, device, backend_name, precision = 2, 0, "cpu", "nearest", "fp32"
    model: Any = SimpleNamespace(info=SimpleNamespace(digest="none"))

    def __init__(self, first: Callable[[], object] = lambda: None) -> None:
        self.first = first

    def plan(self, *_: int, **__: int) -> Any:
        return SimpleNamespace(frames=1)

    def __call__(self, frames: torch.Tensor, *, layout: str) -> torch.Tensor:
        self.first()
        return frames.repeat_interleave(2, 0).repeat_interleave(2, 1)


def slow(seconds: float) -> Any:
    """One that takes its time over each frame."""
    return Nearest(lambda: time.sleep(seconds))
