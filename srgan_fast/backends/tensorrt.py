"""The network as TensorRT engines, built before by `srgan-fast trt build` for this GPU: one takes pixels, one floats.

Nothing is built here. Frames in uint8 go through the engine that takes and gives pixels; all others go through the one
for floats, and become pixels by eager's own rule.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from srgan_fast.backends import selfcheck
from srgan_fast.backends.eager import quantise
from srgan_fast.backends.probe import Ok, Unavailable
from srgan_fast.errors import BackendUnavailable, UsageError
from srgan_fast.kernels.contract import LEVELS
from srgan_fast.model import receptive_radius
from srgan_fast.tensorrt import engines, library
from srgan_fast.tensorrt.session import Engine
from srgan_fast.tiling import Footprint
from srgan_fast.weights import Model

PRECISIONS = ("fp16", "fp32")


def probe(device: str) -> Ok | Unavailable:
    """Whether TensorRT can run on a device; whether there is an engine depends on the model."""
    answer = library.why_not(device)
    return Ok() if answer is None else Unavailable(*answer)


def offer(model: Model, device: str, precision: str) -> TensorRTBackend | Unavailable:
    """The backend for `auto`: only by engines that were found right and faster than all else when they were built.

    Raises:  BackendUnavailable where such engines fail after all
    """
    chosen = "fp16" if precision == "auto" else precision
    if chosen not in PRECISIONS:
        return Unavailable(f"it runs in {' or '.join(PRECISIONS)}, not in {precision}", "take another --precision")
    pair = engines.find(model, chosen, device)
    if isinstance(pair, engines.Missing):
        return Unavailable(pair.reason, pair.fix)
    reluctance = pair.entry.why_not_auto
    if reluctance is not None:
        return Unavailable(reluctance, "give --backend tensorrt to take it all the same")
    return TensorRTBackend(model, device, chosen, pair=pair)


class TensorRTBackend:
    """A network's pair of engines on one GPU; see the module.

    `pair` is one that was just built; else the newest that fits is taken from where engines are kept.

    Raises:  UsageError for an unknown precision; BackendUnavailable where TensorRT does not run here, has no engine for
             this model and GPU, cannot load it, or disagrees with eager PyTorch
    """

    name = "tensorrt"
    batches = True

    def __init__(self, model: Model, device: str, precision: str, *, pair: engines.Pair | None = None) -> None:
        self.device, self.info = torch.device(device), model.info
        self.precision = "fp16" if precision == "auto" else precision
        if self.precision not in PRECISIONS:
            raise UsageError(f"expected a precision of auto, {', '.join(PRECISIONS)}, got {precision!r}")
        found = pair or engines.find(model, self.precision, device)
        if isinstance(found, engines.Missing):
            raise BackendUnavailable(f"backend tensorrt is not available: {found.reason}; {found.fix}")
        self.engine = found.entry.key
        self._pixels, self._floats = (Engine(found.plans[frames], device) for frames in ("uint8", "float"))
        for engine, dtype in ((self._pixels, torch.uint8), (self._floats, torch.float32)):
            if engine.dtype != dtype:
                raise BackendUnavailable(
                    f"expected an engine for {dtype}, got one for {engine.dtype}; build it again with"
                    f" `{engines.build_command(model.info, self.precision)}`"
                )
        self.footprint = self._measured(receptive_radius(model.network))
        n, rows, columns = self.footprint.most or (1, *selfcheck.CHECK_SIZE)
        height, width = selfcheck.CHECK_SIZE
        frames = selfcheck.check_frames(min(height, rows), min(width, columns))[:n]
        self.check = (selfcheck.hold(self, model, frames=frames),)

    def run(self, frames: Tensor, out: Tensor, band: int) -> None:
        """See `Backend.run`; bands save nothing here, where the maps lie in memory that is reused."""
        if frames.dtype == torch.uint8:
            self._pixels.run(frames, out)
            return
        with torch.inference_mode():
            lr = frames.to(torch.float32)
            if frames.dtype in LEVELS:
                lr = lr / LEVELS[frames.dtype]
            hr = torch.empty(out.shape, dtype=torch.float32, device=out.device)
            self._floats.run(lr, hr)
            out.copy_(quantise(hr, out.dtype))

    @property
    def reusable_bytes(self) -> int:
        """See `Backend`."""
        return self._pixels.reusable_bytes + self._floats.reusable_bytes

    def _measured(self, radius: int | None) -> Footprint:
        """What a pixel costs in the largest frames that both engines take, which is where memory counts."""
        ranges = [engine.range[1] for engine in (self._pixels, self._floats)]
        n, rows, columns = (min(sizes) for sizes in zip(*ranges, strict=True))
        # Where frames are no pixels, their floats and those of the result lie beside the engine's own memory.
        copies = 3 * 4 * (1 + self.info.scale**2)
        taken = max(self._pixels.size_bytes((n, rows, columns)), self._floats.size_bytes((n, rows, columns)))
        return Footprint(
            trunk_bytes=taken / math.prod((n, rows, columns)) + copies,
            kept_bytes=0.0,
            tail_bytes=0.0,
            radius=radius,
            tail_radius=0,
            most=(n, rows, columns),
        )
