"""The whole network from the kernels of this project, replayed as one CUDA graph for each size of frame.

All graphs of a backend share one block of memory and one stream, so they run one after another and cost together what
the largest costs alone. Frames are copied into that memory and results out of it, in stream order, without a wait on
the host: what a caller holds is never a view of it.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from srgan_fast import graph
from srgan_fast.backends import selfcheck
from srgan_fast.backends.probe import Ok, Unavailable
from srgan_fast.backends.program import Call, Program, Unsupported, bind, place, run_all, walk
from srgan_fast.errors import BackendUnavailable, UsageError
from srgan_fast.kernels import hopper, launch, only, why_not_triton
from srgan_fast.kernels.driver import DriverError
from srgan_fast.kernels.launch import MOST_ELEMENTS
from srgan_fast.kernels.parity import Agreement
from srgan_fast.model import receptive_radius
from srgan_fast.rewrite import folded, without_last_shuffle
from srgan_fast.tiling import Footprint
from srgan_fast.weights import Model

# int8 is that of the convolutions between the ends; what is not in it is in float16.
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.float16}
# Tiles of one frame come in up to four sizes each way: at both ends, and two that differ by a pixel between them.
_MOST_GRAPHS = 16


def probe(device: str) -> Ok | Unavailable:
    """Whether the kernels can run on a device."""
    answer = why_not_triton(torch.device(device))
    return Ok() if answer is None else Unavailable(*answer)


@dataclass(frozen=True)
class _Ready:
    """One size of frames, ready to run."""

    replay: graph.Work
    frames: Tensor
    pixels: Tensor


class FusedBackend:
    """A network's program of kernels on one device; see the module.

    Raises:  UsageError for an unknown precision; BackendUnavailable where the kernels do not run, do not cover the
             network, or disagree with eager PyTorch
    """

    name = "fused"
    batches = True

    def __init__(self, model: Model, device: str, precision: str) -> None:
        self.device, self.info = torch.device(device), model.info
        if precision not in ("auto", *_DTYPES):
            raise UsageError(f"expected a precision of auto, {', '.join(_DTYPES)}, got {precision!r}")
        self.precision = "fp16" if precision == "auto" else precision
        answer = why_not_triton(self.device)
        if answer is not None:
            raise BackendUnavailable(f"backend fused is not available: {answer[0]}; {answer[1]}")
        if self.precision == "int8" and model.calibration is None:
            raise BackendUnavailable(
                f"int8 is not available for {model.info.name}: its file has no int8 scales; make one that has them with"
                " srgan-fast calibrate"
            )
        calibration = model.calibration if self.precision == "int8" else None
        network = without_last_shuffle(folded(model.network))
        try:
            # Not inference tensors, even if the caller is in that mode: those do not say when they were written to.
            with torch.inference_mode(False):
                self.program: Program = walk(network, model.info, _DTYPES[self.precision], self.device, calibration)
        except Unsupported as error:
            instead = "eager" if calibration is None else "fp16"
            raise BackendUnavailable(f"backend fused does not cover this network: {error}; take {instead}") from error
        self.stream = graph.stream_for(self.device)
        self._memory = torch.empty(0, dtype=torch.uint8, device=self.device)
        self._ready: OrderedDict[tuple[int, int, int, torch.dtype], _Ready] = OrderedDict()
        self._enqueue = threading.Lock()
        self._only: str | None = None  # the implementation that ops are held to; None is the fastest
        self.footprint = self._measured(receptive_radius(model.network))
        try:
            self.check = self._self_check(model)
        except DriverError as error:
            raise BackendUnavailable(f"backend fused fails on this device: {error}; take eager") from error

    def run(self, frames: Tensor, out: Tensor, band: int) -> None:
        """See `Backend.run`; bands save nothing here, where the maps lie in memory that is reused."""
        # The lock covers launches, microseconds, and never waits for the GPU: three launches of one call must not have
        # another call's between them. Whose they are then, the stream keeps apart.
        held = only(self._only) if self._only else nullcontext()
        with self._enqueue, torch.inference_mode(), self._on_stream(frames, out), held:
            ready = self._prepared(frames.shape, frames.dtype)
            ready.frames.copy_(frames)
            ready.replay()
            out.copy_(ready.pixels)

    def _on_stream(self, *tensors: Tensor) -> Any:
        return nullcontext() if self.stream is None else graph.Ordered(self.stream, tensors)

    def _prepared(self, shape: torch.Size, dtype: torch.dtype) -> _Ready:
        n, h, w, _ = key = (*shape[:3], dtype)
        if key in self._ready:
            self._ready.move_to_end(key)
            return self._ready[key]
        calls, views = self.bound(n, h, w, dtype)
        hopper.prepare(self.device, lambda: run_all(calls))
        replay = graph.capture(lambda: run_all(calls), self.device, self.stream)
        self._ready[key] = _Ready(replay, views["frames"], views["pixels"])
        if len(self._ready) > _MOST_GRAPHS:
            self._ready.popitem(last=False)
        return self._ready[key]

    def bound(self, n: int, h: int, w: int, dtype: torch.dtype) -> tuple[list[Call], dict[str, Tensor]]:
        """The calls for n frames of h x w over this backend's memory, and the buffers by name."""
        layout = place(self.program, n, h, w, dtype)
        if layout.size_bytes > self._memory.numel():
            # Graphs hold addresses of the old memory, which the allocator gives away only after their last replay.
            self._ready.clear()
            self._memory = torch.empty(0, dtype=torch.uint8, device=self.device)
            self._memory = torch.empty(layout.size_bytes, dtype=torch.uint8, device=self.device)
        return bind(self.program, layout, self._memory, n, h, w, dtype)

    @property
    def reusable_bytes(self) -> int:
        """See `Backend`."""
        return self._memory.numel()

    def _measured(self, radius: int | None) -> Footprint:
        size = 64
        taken = place(self.program, 1, size, size, torch.uint8).size_bytes / size**2
        most = MOST_ELEMENTS // self.program.elements_a_pixel()
        return Footprint(trunk_bytes=taken, kept_bytes=0.0, tail_bytes=0.0, radius=radius, tail_radius=0, pixels=most)

    def _self_check(self, model: Model) -> tuple[Agreement, ...]:
        """Hold this device's kernels against eager float32: with the tiles of a large frame, and of a small one.

        Over memory full of NaN: what one step leaves unwritten reaches the picture.
        """
        frames = selfcheck.check_frames(*selfcheck.CHECK_SIZE).to(self.device)
        want = selfcheck.wanted(model, frames)
        # By each way that there is: which one is faster for frames of some size shows only with those.
        ways = ("triton",) if hopper.why_not(self.device) else ("sm90", "triton")
        outcomes: list[Agreement] = []
        for way, (tiles, processors) in itertools.product(ways, (("large", 1), ("small", 1 << 30))):
            with only(way), launch.pretend(processors):
                self._poison(frames)
                outcome, said = selfcheck.compared(self, frames, want, one_arithmetic=True)
            self._ready.clear()  # the next ones are captured with other tiles
            if not said:
                outcomes.append(outcome)
                continue
            said = f"{way}, {tiles} tiles, {self.precision}: {said}"
            if way == ways[-1]:
                raise BackendUnavailable(selfcheck.refusal(self.name, said))
            hopper.complain(self.device, f"{model.info.name} disagrees with eager on this device ({said})")
            self._only = ways[-1]
        return tuple(outcomes)

    def _poison(self, frames: Tensor) -> None:
        """Fill the memory that a run of these frames will use with NaN."""
        n, height, width, _ = frames.shape
        with torch.inference_mode(), self._on_stream():
            self.bound(n, height, width, frames.dtype)
            self._memory.fill_(0xFF)
