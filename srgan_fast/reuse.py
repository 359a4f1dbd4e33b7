"""Compute only what changed: decoded video repeats pixels bit for bit wherever the codec skipped a block.

An output pixel depends on the input no further than the network's receptive field reaches. So where a frame differs
from the one before, the difference grown by that radius is computed again, from windows with the radius around them
as context, and the rest of the result before is kept. The bytes are those of the whole frame as long as the backend
gives a window the bytes that it gives the same pixels inside a whole frame. Nothing promises that (a library picks
its convolution by the shape, and another one sums in another order), so it is tried: windows come in few sizes, and
each size is held against a whole frame of noise before its first use.
"""

from __future__ import annotations

import time
import weakref
from collections import deque
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from srgan_fast.errors import MemoryBudgetError, ShapeError, UsageError
from srgan_fast.kernels.contract import LEVELS
from srgan_fast.upscaler import Upscaler

Rectangle = tuple[int, int, int, int]  # [top, bottom), [left, right)

# Pixels a side of the blocks in which frames are compared: those of the finest transforms of codecs.
BLOCK = 8
# Windows come in sizes this far apart; a finer step would save work, and need more of them to be tried.
_STEP = 64
# Of the smallest window at least this much a side is kept. Rounding differs in one value of some ten thousand where
# sums are ordered otherwise, and 200,000 values are enough to see that.
_LEAST_KEPT = 64
# More rectangles than this gain little, and each is a call.
_MOST_RECTANGLES = 6
# Windows have to be this much cheaper than the whole frame: what they are expected to take is an estimate.
_WORTH = 0.9
# What a size that was not yet tried counts for beside one that was: its trial is paid once.
_UNTRIED = 1.2
# As many times are needed before they are believed rather than the number of pixels.
_TIMES = 3


@dataclass(frozen=True)
class _Window:
    """What is read of a frame, and of its result what is kept."""

    read: Rectangle
    keep: Rectangle

    @property
    def shape(self) -> tuple[int, int]:
        top, bottom, left, right = self.read
        return bottom - top, right - left


class Reuse:
    """Upscales the frames of a video one after another, computing again only where a frame differs from the last one.

    Results have the bytes of `upscaler(frame)`. They are the caller's own; with `shared=True` they are kept here too,
    which saves a copy a frame: the caller must not write into them, they are never written into here either, and an
    unchanged frame gives the very same tensor again.

    Shapes:  [h, w, 3] -> [h*scale, w*scale, 3], on the frame's device; a frame of another size starts anew
    Dtypes:  uint8, uint16
    Cost:    beside the upscaler's own a frame and its result, and as much again once a part of a frame could be reused
    Raises:  ShapeError for other frames, UsageError for another mode; what `Upscaler` raises
    """

    def __init__(self, upscaler: Upscaler, mode: Literal["auto", "off"] = "auto", *, shared: bool = False) -> None:
        if mode not in ("auto", "off"):
            raise UsageError(f"expected reuse auto or off, got {mode!r}")
        self.reason = "it was turned off" if mode == "off" else ""
        self._upscaler, self.shared = upscaler, shared
        self._keeps = mode == "auto"
        self._lr: Tensor | None = None
        self._hr: Tensor | None = None
        self._given = self._computed = 0

    @property
    def saved(self) -> float:
        """The share of LR pixels that were not computed; windows count with their context, and so do trials."""
        return max(0.0, 1 - self._computed / self._given) if self._given else 0.0

    @property
    def counts(self) -> tuple[int, int]:
        """LR pixels given and computed so far: what `saved` is made from, to be added over several of these."""
        return self._given, self._computed

    def forget(self) -> None:
        """Let go of all frames that are held; the next one is computed whole."""
        self._lr = self._hr = None
        for sizes in _KNOWN.get(self._upscaler, {}).values():
            sizes.forget()

    def __call__(self, frame: Tensor) -> Tensor:
        """Upscale the next frame."""
        if frame.ndim != 3 or frame.shape[-1] != 3 or frame.dtype not in LEVELS:
            raise ShapeError(f"expected a frame [h, w, 3] of uint8 or uint16, got {tuple(frame.shape)} {frame.dtype}")
        self._given += frame.shape[0] * frame.shape[1]
        if not self._keeps:
            return self._whole(frame)
        try:
            return self._next(frame)
        except MemoryBudgetError:
            # The budget was made for a frame, not for the one before it too.
            if self._hr is None:
                raise
            self._turn_off("the memory budget leaves no room for the frame before")
            return self._whole(frame)

    def _next(self, frame: Tensor) -> Tensor:
        lr = self._lr
        # On an error what is held here may be half of one frame and half of the next.
        self._lr = None
        if lr is None or not _alike(lr, frame):
            return self._anew(frame)
        changed = _changed_blocks(lr, frame)
        if changed.any():
            windows = self._windows(frame, changed)
            if windows is None:
                return self._anew(frame)
            self._patch(frame, windows)
            lr.copy_(frame)
        self._lr = lr
        return self._result()

    def _result(self) -> Tensor:
        assert self._hr is not None
        return self._hr if self.shared else self._hr.clone()

    def _whole(self, frame: Tensor) -> Tensor:
        self._computed += frame.shape[0] * frame.shape[1]
        return self._upscaler(frame, layout="HWC")

    def _anew(self, frame: Tensor) -> Tensor:
        hr = _sizes_for(self._upscaler, frame).run(frame)
        self._computed += frame.shape[0] * frame.shape[1]
        self._keep(frame, hr)
        return hr

    def _keep(self, frame: Tensor, hr: Tensor) -> None:
        if self.shared:
            self._hr = hr
        elif self._hr is not None and _alike(self._hr, hr):
            self._hr.copy_(hr)
        else:
            self._hr = hr.clone()
        self._lr = frame.clone()

    def _turn_off(self, reason: str) -> None:
        self.reason, self._keeps = reason, False
        self.forget()

    def _windows(self, frame: Tensor, changed: NDArray[np.bool_]) -> list[_Window] | None:
        """What to compute again, of sizes that were tried; None where the whole frame is the better choice."""
        sizes = _sizes_for(self._upscaler, frame)
        if not self._sound(sizes) or changed.mean() > _WORTH:
            return None
        windows = sizes.cover(changed)
        if windows is None:
            return None
        for shape in {window.shape for window in windows}:
            if shape not in sizes.tried:
                self._computed += sizes.try_out(shape)
                if not self._sound(sizes):
                    return None
        return windows

    def _sound(self, sizes: _Sizes) -> bool:
        """Whether windows can stand for the whole frame. If not, whole frames that repeat are still not computed."""
        self.reason = sizes.fault
        return not sizes.fault

    def _patch(self, frame: Tensor, windows: list[_Window]) -> None:
        assert self._hr is not None
        sizes, s = _sizes_for(self._upscaler, frame), self._upscaler.scale
        if self.shared:
            self._hr = self._hr.clone()
        for window in windows:
            y0, y1, x0, x1 = window.read
            top, bottom, left, right = window.keep
            piece = sizes.run(frame[y0:y1, x0:x1])
            self._computed += (y1 - y0) * (x1 - x0)
            self._hr[top * s : bottom * s, left * s : right * s] = piece[
                (top - y0) * s : (bottom - y0) * s, (left - x0) * s : (right - x0) * s
            ]


def _alike(a: Tensor, b: Tensor) -> bool:
    return (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)


def _changed_blocks(before: Tensor, after: Tensor) -> NDArray[np.bool_]:
    """Which blocks of two frames [h, w, 3] differ, [ceil(h/BLOCK), ceil(w/BLOCK)]."""
    height, width = before.shape[:2]
    rows, columns = -(-height // BLOCK), -(-width // BLOCK)
    differ = torch.zeros(rows * BLOCK, columns * BLOCK * 3, dtype=torch.bool, device=before.device)
    # torch compares no uint16.
    a, b = (each.contiguous().view(height, width * 3) for each in (before, after))
    if a.dtype == torch.uint16:
        a, b = a.view(torch.int16), b.view(torch.int16)
    torch.ne(a, b, out=differ[:height, : width * 3])
    # Eight truths at once: a row of a block is three numbers of 64 bits.
    words = differ.view(torch.int64).view(rows, BLOCK, columns, 3 * BLOCK // 8)
    return (words != 0).any(dim=3).any(dim=1).cpu().numpy()


# By upscaler, because its backend is what is tried and timed; segments of one job share what was found.
_KNOWN: weakref.WeakKeyDictionary[Upscaler, dict[Any, _Sizes]] = weakref.WeakKeyDictionary()


def _sizes_for(upscaler: Upscaler, frame: Tensor) -> _Sizes:
    key = (tuple(frame.shape[:2]), frame.dtype, frame.device, torch.get_num_threads())
    known = _KNOWN.setdefault(upscaler, {})
    if key not in known:
        known[key] = _Sizes(upscaler, frame)
    return known[key]


class _Sizes:
    """The sizes of windows into frames of one shape and dtype: which give the bytes of the whole, what they take."""

    def __init__(self, upscaler: Upscaler, frame: Tensor) -> None:
        # What is known about an upscaler must not keep it.
        self._upscaler = weakref.proxy(upscaler)
        self._dtype, self._device = frame.dtype, frame.device
        self._height, self._width = frame.shape[:2]
        self.fault = ""
        self.tried: set[tuple[int, int]] = set()
        self._seconds: dict[tuple[int, int], deque[float]] = {}
        self._noise: tuple[Tensor, Tensor] | None = None
        radius = upscaler.radius
        if radius is None:
            self.fault = "this network normalises over the whole frame"
            return
        self._radius = radius
        self._rows, self._columns = (_steps(length, radius) for length in (self._height, self._width))
        self._costs: NDArray[np.float64] | None = None
        self._best: NDArray[np.intp] | None = None

    def run(self, lr: Tensor) -> Tensor:
        """Upscale a window, or the frame, and note how long one of its shape took."""
        times = self._seconds.setdefault((lr.shape[0], lr.shape[1]), deque(maxlen=8))
        cuda = self._upscaler.device != "cpu"
        if cuda and len(times) >= _TIMES:
            return self._upscaler(lr, layout="HWC")  # to time a call is to wait for it
        if cuda:
            torch.cuda.synchronize(self._upscaler.device)
        start = time.perf_counter()
        result = self._upscaler(lr, layout="HWC")
        if cuda:
            torch.cuda.synchronize(self._upscaler.device)
        times.append(time.perf_counter() - start)
        self._costs = None
        return result

    def forget(self) -> None:
        """Give the memory of the trials back; what was found is kept."""
        self._noise = None

    def cover(self, changed: NDArray[np.bool_]) -> list[_Window] | None:
        """The cheapest few windows found that compute all that changed blocks have an influence on; None for whole."""
        box = _bounds(changed)
        parts = [(box, float(self._cost(*np.array(box)[:, None])[0]))]
        done: list[tuple[Rectangle, float]] = []
        while parts and len(parts) + len(done) < _MOST_RECTANGLES:
            rectangle, cost = parts.pop()
            cut = self._cut(changed, rectangle)
            if cut is not None and _total(cut) < cost:
                parts += cut
            else:
                done.append((rectangle, cost))
        parts += done
        if _total(parts) > _WORTH * self._whole_s():
            return None
        return [self._window(rectangle) for rectangle, _ in parts]

    def try_out(self, shape: tuple[int, int]) -> int:
        """Hold a window of this shape against a whole frame of noise, byte by byte; returns the LR pixels computed.

        The window lies at odd distances from the border: results that depend on where a pixel is in some tile or
        vector of the library differ then.
        """
        pixels = shape[0] * shape[1]
        noise = self._noise
        if noise is None:
            generator = torch.Generator().manual_seed(0)
            low, high = (48, 208) if self._dtype == torch.uint8 else (48 << 8, 208 << 8)
            size = (self._height, self._width, 3)
            lr = torch.randint(low, high, size, generator=generator, dtype=torch.int32)
            lr = lr.to(self._dtype).to(self._device)
            noise = self._noise = lr, self.run(lr)
            pixels += self._height * self._width
        lr, hr = noise
        top, left = (_odd((whole - part) // 2) for whole, part in zip((self._height, self._width), shape, strict=True))
        bottom, right = top + shape[0], left + shape[1]
        piece = self.run(lr[top:bottom, left:right])
        y0, y1, x0, x1 = self._inside((top, bottom, left, right))
        s = self._upscaler.scale
        want = hr[y0 * s : y1 * s, x0 * s : x1 * s]
        got = piece[(y0 - top) * s : (y1 - top) * s, (x0 - left) * s : (x1 - left) * s]
        if torch.equal(got, want):
            self.tried.add(shape)
            self._costs = None
        else:
            levels = (got.to(torch.int32) - want.to(torch.int32)).abs().max().item()
            up = self._upscaler
            self.fault = (
                f"{up.backend_name} {up.precision} gives a window of {shape[1]}x{shape[0]} other bytes than a whole"
                f" frame of {self._width}x{self._height} (by {levels} of {LEVELS[self._dtype]} levels)"
            )
            self.forget()
        return pixels

    def _inside(self, read: Rectangle) -> Rectangle:
        """The part of a window whose context is complete: all that is `radius` away from its inner borders."""
        top, bottom, left, right = read
        r = self._radius
        return (
            top + r if top else 0,
            bottom - r if bottom < self._height else bottom,
            left + r if left else 0,
            right - r if right < self._width else right,
        )

    def _grown(self, blocks: Rectangle, by: int) -> Rectangle:
        top, bottom, left, right = (BLOCK * each for each in blocks)
        return (
            max(0, top - by),
            min(self._height, bottom + by),
            max(0, left - by),
            min(self._width, right + by),
        )

    def _window(self, blocks: Rectangle) -> _Window:
        """The window that computes again what these blocks have an influence on."""
        keep, need = self._grown(blocks, self._radius), self._grown(blocks, 2 * self._radius)
        i, j = (
            int(np.searchsorted(steps, end - start))
            for steps, start, end in ((self._rows, *need[:2]), (self._columns, *need[2:]))
        )
        self._table()
        assert self._best is not None
        rows, columns = np.unravel_index(self._best[i, j], self._best.shape)
        top = min(need[0], self._height - int(self._rows[rows]))
        left = min(need[2], self._width - int(self._columns[columns]))
        return _Window((top, top + int(self._rows[rows]), left, left + int(self._columns[columns])), keep)

    def _cost(
        self, top: NDArray[np.intp], bottom: NDArray[np.intp], left: NDArray[np.intp], right: NDArray[np.intp]
    ) -> NDArray[np.float64]:
        """Seconds that the windows of rectangles of blocks are expected to take."""
        halo = 2 * self._radius
        rows = np.minimum(self._height, BLOCK * bottom + halo) - np.maximum(0, BLOCK * top - halo)
        columns = np.minimum(self._width, BLOCK * right + halo) - np.maximum(0, BLOCK * left - halo)
        return self._table()[np.searchsorted(self._rows, rows), np.searchsorted(self._columns, columns)]

    def _whole_s(self) -> float:
        return min(self._seconds[self._height, self._width])

    def _table(self) -> NDArray[np.float64]:
        """Expected seconds by the index of the least rows and columns: of the best size that is as large or larger."""
        # Another thread may have its own stream of the same upscaler, and empty this at any time.
        if (costs := self._costs) is not None:
            return costs
        shape = len(self._rows), len(self._columns)
        own = np.empty(shape)
        a_pixel = self._whole_s() / (self._height * self._width)
        # What a call takes beside its pixels, where it is least of the sizes that are known.
        known = {size: min(times) for size, times in list(self._seconds.items()) if len(times) >= _TIMES}
        known.pop((self._height, self._width), None)
        call = max(0.0, min((took - a_pixel * rows * columns for (rows, columns), took in known.items()), default=0.0))
        for i, rows in enumerate(self._rows):
            for j, columns in enumerate(self._columns):
                size = int(rows), int(columns)
                own[i, j] = known.get(size, call + a_pixel * rows * columns)
                if size not in self.tried:
                    own[i, j] *= _UNTRIED
        costs = own.copy()
        best = np.arange(own.size).reshape(shape)
        # From the largest down: a larger size that was tried, or is quicker, may serve.
        for i in reversed(range(shape[0])):
            for j in reversed(range(shape[1])):
                for k, m in ((i + 1, j), (i, j + 1)):
                    if k < shape[0] and m < shape[1] and costs[k, m] < costs[i, j]:
                        costs[i, j], best[i, j] = costs[k, m], best[k, m]
        self._costs, self._best = costs, best
        return costs

    def _cut(self, changed: NDArray[np.bool_], rectangle: Rectangle) -> list[tuple[Rectangle, float]] | None:
        """The best two rectangles that cover what changed inside one, with their costs; None if it cannot be cut."""
        top, bottom, left, right = rectangle
        part = changed[top:bottom, left:right]
        origin = np.array([[top], [top], [left], [left]])
        best: list[tuple[Rectangle, float]] | None = None
        for across in (False, True):
            piece = part.T if across else part
            if len(piece) < 2:
                continue
            sides = [
                origin + np.stack((first, last, start, end) if across else (start, end, first, last))
                for start, end, first, last in _halves(piece)
            ]
            costs = [self._cost(*side) for side in sides]
            k = int((costs[0] + costs[1]).argmin())
            pair = []
            for side, cost in zip(sides, costs, strict=True):
                a, b, c, d = side[:, k].tolist()
                pair.append(((a, b, c, d), float(cost[k])))
            if best is None or _total(pair) < _total(best):
                best = pair
        return best


def _steps(length: int, radius: int) -> NDArray[np.intp]:
    """The sizes of a window along one side, in order; the whole side is the last."""
    least = -(-(2 * radius + _LEAST_KEPT) // 32) * 32
    return np.array([*range(least, length - _STEP // 2, _STEP), length])


def _odd(n: int) -> int:
    return n - 1 + n % 2 if n else 0


def _bounds(changed: NDArray[np.bool_]) -> Rectangle:
    rows, columns = (np.flatnonzero(changed.any(axis)) for axis in (1, 0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def _total(parts: list[tuple[Rectangle, float]]) -> float:
    return sum(cost for _, cost in parts)


def _halves(piece: NDArray[np.bool_]) -> list[tuple[NDArray[np.intp], ...]]:
    """Of the two sides of every cut between lines: start and end, first and last column of what changed, by cut."""
    end, first, last = _prefixes(piece)
    back, *columns = (each[::-1] for each in _prefixes(piece[::-1]))
    return [(np.zeros_like(end), end, first, last), (len(piece) - back, np.full_like(back, len(piece)), *columns)]


def _prefixes(piece: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Bounds of the first k lines, k = 1 to all but one: the end of the last that has a change, first and last column.

    The first line has a change, as those of a rectangle that was cut to its bounds have.
    """
    lines = piece[:-1]
    some = lines.any(1)
    width = piece.shape[1]
    end = np.maximum.accumulate(np.where(some, np.arange(1, len(lines) + 1), 0))
    first = np.minimum.accumulate(np.where(some, lines.argmax(1), width))
    last = np.maximum.accumulate(np.where(some, width - lines[:, ::-1].argmax(1), 0))
    return end, first, last
