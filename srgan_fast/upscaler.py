"""Upscaler: frames of any size in, frames out. Owns layouts, device, memory and the choice of backend."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar, cast

import torch
from torch import Tensor

from srgan_fast.backends import select
from srgan_fast.errors import BackendUnavailable, MemoryBudgetError, ShapeError, UsageError
from srgan_fast.exchange import borrowed
from srgan_fast.memory import give_back_freed, parse_memory, resident_bytes
from srgan_fast.tiling import SMALLEST_TILE, Plan, plan, tiles
from srgan_fast.weights import Model, load

if TYPE_CHECKING:
    from srgan_fast.reuse import Reuse

Layout = Literal["HWC", "NHWC", "CHW", "NCHW"]
Frames = TypeVar("Frames")

# What a run takes beside tensors: convolutions compiled for its shapes, thread stacks.
_LIBRARY_BYTES = 16 << 20
# Of a GPU's free memory, what a run may take: the rest is for what the allocator cannot use between its pieces.
_FREE_SHARE = 0.9

_log = logging.getLogger(__name__)

_INTEGERS = (torch.uint8, torch.uint16)
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Upscaler:
    """A super-resolution network ready to run: call it with frames, get frames `scale` times larger.

    `model` is a bundled name, a weights file or what `load` gives. `tile` is how much of a frame is computed at once,
    `memory` what this process may take; where both are left open, frames are cut only where the device needs it.

    Shapes:  [h, w, 3] or [n, h, w, 3] integers, [3, h, w] or [n, 3, h, w] floats; any other way round by `layout`
    Dtypes:  uint8, uint16, float16, float32, float64 (bfloat16 as a tensor); numpy arrays, torch tensors, objects with
             `__dlpack__` or `__cuda_array_interface__`
    Units:   integers use their whole range, floats [0, 1]; what goes in comes out (type, dtype, device, layout);
             `tile` in LR pixels a side, `memory` in bytes, or as text such as 2G or 512M
    Raises:  ShapeError for frames outside this contract; UsageError, WeightsError, BackendUnavailable,
             MemoryBudgetError from the choices
    """

    def __init__(
        self,
        model: str | Path | Model = "srresnet_x4",
        *,
        backend: str = "auto",
        device: str = "auto",
        precision: str = "auto",
        tile: int | None = None,
        memory: str | int | None = None,
    ) -> None:
        self.tile, self.memory_bytes = tile, parse_memory(memory)
        if self.memory_bytes is not None:
            give_back_freed()
        self.model = model if isinstance(model, Model) else load(model)
        self.device = resolved(device)
        self.scale = self.model.info.scale
        self._backend = select(backend, self.model, self.device, precision)
        self.backend_name, self.precision = self._backend.name, self._backend.precision

    @property
    def radius(self) -> int | None:
        """How far from itself a pixel looks, in LR pixels; None where it sees the whole frame."""
        return self._backend.footprint.radius

    def plan(self, height: int, width: int, *, itemsize: int = 1, count: int = 1) -> Plan:
        """How `count` frames of this size will be cut, and the working memory that takes.

        Units:   LR pixels; `itemsize` in bytes a value
        Raises:  MemoryBudgetError if the budget cannot hold the smallest tile; UsageError for a tile that cannot be;
                 BackendUnavailable if the backend takes no tile of such frames
        """
        copy = 3 * itemsize * self.scale**2
        budget = self._budget(count * height * width * self.scale**2 * 3 * itemsize)
        cost = self._backend.footprint
        cut = plan(cost, height, width, tile=self.tile, budget_bytes=budget, copy_bytes=copy)
        if not self._backend.batches or cut.tile is not None:
            return cut
        most = count if cost.most is None else min(count, cost.most[0])
        together = most if budget is None else max(1, min(most, budget // max(1, cut.peak_bytes)))
        return replace(cut, frames=together, peak_bytes=together * cut.peak_bytes)

    def _budget(self, results_bytes: int) -> int | None:
        """What a run may use beyond what is there already, the frames among it, and the results that it will add."""
        if self.device == "cpu":
            if self.memory_bytes is None:
                return None
            there = resident_bytes() - self._backend.reusable_bytes
            return self.memory_bytes - there - results_bytes - _LIBRARY_BYTES
        held = torch.cuda.memory_allocated(self.device) - self._backend.reusable_bytes
        if self.memory_bytes is not None:
            return self.memory_bytes - held - results_bytes
        free = torch.cuda.mem_get_info(self.device)[0] + torch.cuda.memory_reserved(self.device)
        return int(_FREE_SHARE * (free - held - results_bytes))

    def __call__(self, frames: Frames, *, layout: Layout | None = None, color: Literal["rgb", "bgr"] = "rgb") -> Frames:
        """Upscale one frame or a batch; see the class for what it takes."""
        tensor, back = borrowed(frames)
        return cast(Frames, back(self.upscaled(tensor, layout, color, self.run)))

    def stream(
        self,
        frames: Iterable[Frames],
        *,
        layout: Layout | None = None,
        color: Literal["rgb", "bgr"] = "rgb",
        reuse: Reuse | Literal["auto", "off"] = "auto",
        ahead: int = 2,
    ) -> Iterator[Frames]:
        """Upscale the frames of a video one after another, in order; each result is of the kind of its frame.

        A thread works on one frame while the caller uses the result before. At most `ahead` frames are taken from the
        source before their results are asked for; with 1 nothing overlaps. What did not change since the frame before
        is not computed again (see `Reuse`), unless `reuse` is "off"; a `Reuse` that is handed in can be asked later how
        much it saved. An error of the source comes after the results of the frames before it. Leaving the loop, or
        closing the iterator, ends the thread after the frame that it is at.

        Raises:  what a call raises, at the frame in question; UsageError at once for wrong choices
        """
        from srgan_fast.stream import stream

        return stream(self, frames, layout=layout, color=color, reuse=reuse, ahead=ahead)

    def astream(
        self,
        frames: Iterable[Frames] | AsyncIterable[Frames],
        *,
        layout: Layout | None = None,
        color: Literal["rgb", "bgr"] = "rgb",
        reuse: Reuse | Literal["auto", "off"] = "auto",
        ahead: int = 2,
    ) -> AsyncIterator[Frames]:
        """`stream` for asyncio: the event loop is never held up, by a source that is not async neither.

        Cancelling the task, or `aclose()` of the iterator, stops the work and waits for the frame that is under way.
        """
        from srgan_fast.stream import astream

        return astream(self, frames, layout=layout, color=color, reuse=reuse, ahead=ahead)

    def upscaled(
        self,
        tensor: Tensor,
        layout: Layout | None,
        color: Literal["rgb", "bgr"],
        run: Callable[[Tensor, Layout], Tensor],
    ) -> Tensor:
        """What a call does, with what turns NHWC frames into results left to `run`."""
        if color not in ("rgb", "bgr"):
            raise UsageError(f"expected color rgb or bgr, got {color!r}")
        layout = _layout(tensor, layout)
        nhwc = _to_nhwc(tensor, layout).to(self.device)
        if color == "bgr":
            nhwc = nhwc.flip(-1)
        out = run(nhwc.contiguous(), layout)
        if color == "bgr":
            for each in out:
                red = each[..., 2].clone()
                each[..., 2] = each[..., 0]
                each[..., 0] = red
        result = (out.permute(0, 3, 1, 2) if layout.endswith("CHW") else out).to(tensor.device)
        return result if "N" in layout else result[0]

    def run(self, frames: Tensor, layout: Layout) -> Tensor:
        """NHWC frames -> NHWC results that lie in memory as `layout` has them."""
        n, height, width, _ = frames.shape
        scale = self.scale
        cut = self.plan(height, width, itemsize=frames.element_size(), count=n)
        if layout.endswith("CHW"):
            out = frames.new_empty(n, 3, height * scale, width * scale).permute(0, 2, 3, 1)
        else:
            out = frames.new_empty(n, height * scale, width * scale, 3)
        while True:
            try:
                self._run_cut(frames, out, cut)
                return out
            except torch.OutOfMemoryError as error:
                # Another process may have taken what was free when the plan was made.
                smaller = self._smaller(cut, height, width)
                if smaller is None:
                    raise MemoryBudgetError(f"out of memory on {self.device} with the smallest tile") from error
                _log.warning("out of memory on %s: %s instead of %s", self.device, _said(smaller), _said(cut))
                cut = smaller
                torch.cuda.empty_cache()

    def _smaller(self, cut: Plan, height: int, width: int) -> Plan | None:
        if cut.frames > 1:
            return replace(cut, frames=cut.frames // 2)
        size = (max(height, width) if cut.tile is None else cut.tile) // 2
        if size < SMALLEST_TILE or self._backend.footprint.radius is None:
            return None
        return plan(self._backend.footprint, height, width, tile=size, budget_bytes=None)

    def _run_cut(self, frames: Tensor, out: Tensor, cut: Plan) -> None:
        n, height, width, _ = frames.shape
        scale = self.scale
        # A batch on a CPU would multiply the memory that was planned, and gain nothing.
        for i in range(0, n, cut.frames):
            frame, result = frames[i : i + cut.frames], out[i : i + cut.frames]
            if cut.tile is None or cut.tile >= max(height, width):
                self._backend.run(frame, result, cut.band)
                continue
            for tile in tiles(height, width, cut.tile, self._backend.footprint.radius or 0):
                y0, y1, x0, x1 = tile.read
                top, bottom, left, right = tile.keep
                window = frame[:, y0:y1, x0:x1].contiguous()
                piece = window.new_empty(len(frame), (y1 - y0) * scale, (x1 - x0) * scale, 3)
                self._backend.run(window, piece, cut.band)
                result[:, top * scale : bottom * scale, left * scale : right * scale] = piece[
                    :, (top - y0) * scale : (bottom - y0) * scale, (left - x0) * scale : (right - x0) * scale
                ]


def _said(cut: Plan) -> str:
    """How frames are cut, in words."""
    return f"{cut.frames} at once, {'whole' if cut.tile is None else f'in tiles of {cut.tile} pixels'}"


def resolved(device: str) -> str:
    """The device that a name means; `auto` is the GPU if there is one.

    Raises:  UsageError for another name; BackendUnavailable for a GPU that is not there
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        asked = torch.device(device)
    except RuntimeError:
        asked = None
    if asked is None or asked.type not in ("cpu", "cuda"):
        raise UsageError(f"expected a device of auto, cpu or cuda[:N], got {device!r}")
    if asked.type == "cpu":
        return "cpu"  # also for cpu:0: there is one
    if not torch.cuda.is_available():
        raise BackendUnavailable(f"device {device} was asked for, but torch sees no NVIDIA GPU; give --device cpu")
    count = torch.cuda.device_count()
    if asked.index is not None and asked.index >= count:
        raise BackendUnavailable(f"device {device} was asked for, but torch sees {count} GPUs; give --device cuda")
    return str(asked)


def _layout(frames: Tensor, layout: Layout | None) -> Layout:
    if frames.dtype not in (*_INTEGERS, *_FLOATS):
        raise ShapeError(f"expected uint8, uint16 or floating-point frames, got {frames.dtype}")
    shape = tuple(frames.shape)
    if layout is None:
        if len(shape) not in (3, 4) or 3 not in (shape[-1], shape[-3]):
            raise ShapeError(f"expected 3 or 4 dimensions with 3 channels, got {shape}; convert grey or alpha first")
        last, first = shape[-1] == 3, shape[-3] == 3
        wanted_last = frames.dtype in _INTEGERS
        if (last and first) or (wanted_last != last):
            raise ShapeError(f"the layout of {frames.dtype} frames of shape {shape} is not clear; pass layout=")
        layout = ("NHWC" if last else "NCHW") if len(shape) == 4 else ("HWC" if last else "CHW")
    if layout not in ("HWC", "NHWC", "CHW", "NCHW"):
        raise UsageError(f"expected layout HWC, NHWC, CHW or NCHW, got {layout!r}")
    if len(shape) != len(layout) or shape[layout.index("C")] != 3:
        raise ShapeError(f"expected {layout} frames with 3 channels, got shape {shape}")
    if shape[layout.index("H")] == 0 or shape[layout.index("W")] == 0:
        raise ShapeError(f"expected frames of at least 1x1 pixel, got shape {shape}")
    return layout


def _to_nhwc(frames: Tensor, layout: Layout) -> Tensor:
    frames = frames if "N" in layout else frames[None]
    return frames.permute(0, 2, 3, 1) if layout.endswith("CHW") else frames
