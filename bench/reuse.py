"""What computing only what changed saves: the same video with it on and off, frame by frame in turns.

The frames differ from each other where a pattern says, at the size and place that the issue's bars name: a tenth of the
frame as one rectangle, as a strip, as two rectangles; everything; nothing. The first frames of a pattern are not timed:
on them sizes of windows are tried, once for an upscaler.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from srgan_fast.bench.device import synchronise
from srgan_fast.bench.figures import reuse_figures
from srgan_fast.bench.record import record
from srgan_fast.reuse import Reuse
from srgan_fast.upscaler import Upscaler

Rectangle = tuple[float, float, float, float]

# [top, bottom), [left, right) of what changes from frame to frame, in parts of its height and width.
PATTERNS: dict[str, tuple[Rectangle, ...]] = {
    "rectangle": ((0.3, 0.6162, 0.25, 0.5662),),
    "strip": ((0.4, 0.5, 0.0, 1.0),),
    "two rectangles": ((0.06, 0.2836, 0.05, 0.2736), (0.7, 0.9236, 0.7, 0.9236)),
    "all": ((0.0, 1.0, 0.0, 1.0),),
    "nothing": (),
}
_WARM_UP = 2

_log = logging.getLogger(__name__)


def measure(
    model_name: str, height: int, width: int, runs: int, device: str, precision: str = "auto"
) -> Iterator[dict[str, Any]]:
    """One record a pattern, as soon as it is there.

    Units:   milliseconds a frame; `saved` is the share of pixels that was not computed, of all frames and of trials
    Raises:  ValueError for runs below 1; what `Upscaler` raises
    """
    if runs < 1:
        raise ValueError(f"expected at least 1 run, got {runs}")
    upscaler = Upscaler(model_name, device=device, precision=precision)
    for name, rectangles in PATTERNS.items():
        reuse = Reuse(upscaler)
        on_ms: list[float] = []
        off_ms: list[float] = []
        same = True
        for i, frame in enumerate(_video(height, width, rectangles, upscaler.device, _WARM_UP + runs)):
            if i < _WARM_UP:
                reuse(frame)
                continue
            # Who runs after whom matters, so nobody always follows the other.
            results = []
            for samples in (on_ms, off_ms) if i % 2 else (off_ms, on_ms):
                synchronise(upscaler.device)
                start = time.perf_counter()
                results.append(reuse(frame) if samples is on_ms else upscaler(frame, layout="HWC"))
                synchronise(upscaler.device)
                samples.append((time.perf_counter() - start) * 1e3)
            same = same and torch.equal(*results)
        if reuse.reason:
            _log.warning("%s %s computed whole frames: %s", upscaler.backend_name, upscaler.precision, reuse.reason)
        raw = {"on_ms": on_ms, "off_ms": off_ms}
        yield record(
            "reuse",
            upscaler.model.info.name,
            weights=upscaler.model.info.digest,
            impl=upscaler.backend_name,
            baseline="off",
            dtype=upscaler.precision,
            device=torch.device(upscaler.device).type,
            pattern=name,
            shape={"n": 1, "c": 3, "h": height, "w": width, "scale": upscaler.scale},
            raw=raw,
            saved=reuse.saved,
            reason=reuse.reason,
            derived=reuse_figures(raw) if same else {},
            quality={"gate": "pass" if same else "fail"},
        )


def _video(height: int, width: int, rectangles: tuple[Rectangle, ...], device: str, count: int) -> Iterator[Tensor]:
    """Noise, of which some is drawn anew for each frame."""
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    for _ in range(count):
        for top, bottom, left, right in rectangles:
            part = frame[round(top * height) : round(bottom * height), round(left * width) : round(right * width)]
            part[:] = rng.integers(0, 256, part.shape, dtype=np.uint8)
        yield torch.from_numpy(frame.copy()).to(device)
