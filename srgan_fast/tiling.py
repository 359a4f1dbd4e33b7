"""Bounded memory without a changed pixel: how a frame is cut so that the pieces equal the whole.

Two cuts, both exact. Bands: the network's trunk sees the whole frame and its tail, where nearly all memory goes, a
few rows at a time. Tiles: the network sees a window with as much context as its receptive field reaches. At the
border of the frame a window ends where the frame ends, because there the network's own zero padding belongs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from srgan_fast.errors import BackendUnavailable, MemoryBudgetError, UsageError

# A tail of this many bytes fits the caches and page tables comfortably; larger bands gain nothing on a CPU.
_BAND_BYTES = 192 << 20
_SMALLEST_BAND = 16
SMALLEST_TILE = 16


@dataclass(frozen=True)
class Footprint:
    """What a frame costs on a backend, measured on a small one.

    Units:  bytes a LR pixel: `trunk_bytes` while the trunk runs, `kept_bytes` of its result, `tail_bytes` that the tail
            adds for each pixel of a band with its halo; radii in LR pixels. `radius` is None when a layer looks at
            the whole frame. `pixels` is the most that a window may have, and `most` the frames, rows and columns of
            one run at most, where there are such limits.
    """

    trunk_bytes: float
    kept_bytes: float
    tail_bytes: float
    radius: int | None
    tail_radius: int
    pixels: int | None = None
    most: tuple[int, int, int] | None = None

    def admits(self, height: int, width: int) -> bool:
        """Whether a window of this size can be run at all, whatever the memory."""
        if self.pixels is not None and height * width > self.pixels:
            return False
        return self.most is None or (height <= self.most[1] and width <= self.most[2])

    def band(self, height: int, width: int) -> int:
        """Rows of a band that is comfortable: all of them where bands save nothing."""
        if self.tail_bytes == 0:
            return height
        return max(_SMALLEST_BAND, int(_BAND_BYTES / (self.tail_bytes * width)))

    def peak_bytes(self, height: int, width: int, band: int, copy_bytes: int = 0) -> int:
        """Working memory of one frame, beyond its input and output.

        `copy_bytes` is what a LR pixel of a window's own result takes: memory that the tail fills band by band, and
        that the system gives only then; all of it from the start where there are no bands.
        """
        pixels = height * width
        if self.tail_bytes == 0:
            return int((self.trunk_bytes + copy_bytes) * pixels)
        rows = min(height, band + 2 * self.tail_radius)
        tail = (self.kept_bytes + copy_bytes) * pixels + self.tail_bytes * rows * width
        return int(max(self.trunk_bytes * pixels, tail))


@dataclass(frozen=True)
class Tile:
    """One window of a frame: what is read, and the part of it that is kept; [top, bottom) and [left, right)."""

    read: tuple[int, int, int, int]
    keep: tuple[int, int, int, int]


def tiles(height: int, width: int, size: int, halo: int) -> Iterator[Tile]:
    """Cover a frame with windows that keep at most `size` pixels a side, sharing the work evenly."""
    for top, bottom in _spans(height, size):
        for left, right in _spans(width, size):
            yield Tile(
                read=(max(0, top - halo), min(height, bottom + halo), max(0, left - halo), min(width, right + halo)),
                keep=(top, bottom, left, right),
            )


def _spans(length: int, size: int) -> list[tuple[int, int]]:
    count = -(-length // size)
    edges = [length * i // count for i in range(count + 1)]
    return list(itertools.pairwise(edges))


@dataclass(frozen=True)
class Plan:
    """How frames are run: in bands of `band` rows, in tiles that keep `tile` pixels a side unless it is None.

    `frames` of them run at once, and `peak_bytes` is what that takes.
    """

    band: int
    tile: int | None
    peak_bytes: int
    frames: int = 1


def plan(
    cost: Footprint, height: int, width: int, *, tile: int | None, budget_bytes: int | None, copy_bytes: int = 0
) -> Plan:
    """Choose the cut of a frame before anything is allocated.

    `budget_bytes` is what the run may use beyond the frame and its result; None is unlimited. A `tile` that the user
    asked for is taken as it is. `copy_bytes` is what a LR pixel of a window's own result takes.

    Raises:  MemoryBudgetError if no cut fits; UsageError for tiles of a network that looks at the whole frame, or
             beyond what the backend takes at once; BackendUnavailable if that holds for the smallest tile too
    """
    if tile is not None:
        if tile < 1:
            raise UsageError(f"expected a tile of at least 1 pixel, got {tile}")
        if cost.radius is None and tile < max(height, width):
            raise UsageError(
                "this network normalises over the whole frame, so tiles would change its picture; leave --tile out"
            )
        rows, columns = _window(cost, height, width, tile)
        if not cost.admits(rows, columns):
            raise UsageError(
                f"expected a smaller tile: with its margin, one of {tile} is {columns}x{rows} pixels, more than the"
                " backend takes at once; leave --tile out"
            )
        return _tiled(cost, height, width, tile, copy_bytes)
    budget = math.inf if budget_bytes is None else budget_bytes
    band = cost.band(height, width)
    narrow = Plan(_SMALLEST_BAND, None, cost.peak_bytes(height, width, _SMALLEST_BAND))
    for whole in (Plan(band, None, cost.peak_bytes(height, width, band)), narrow):
        if whole.peak_bytes <= budget and cost.admits(height, width):
            return whole
    if cost.radius is None and not cost.admits(height, width):
        raise BackendUnavailable(
            f"this network normalises over the whole frame and cannot be tiled, and {width}x{height} is more than the"
            " backend takes at once; take another backend"
        )
    if cost.radius is None:
        raise MemoryBudgetError(
            f"this network normalises over the whole frame and cannot be tiled: {width}x{height} needs"
            f" {narrow.peak_bytes / 2**20:.1f} MiB, {max(0, budget) / 2**20:.1f} MiB are left; raise --memory"
        )
    size = max(height, width)
    while True:
        candidate = _tiled(cost, height, width, size, copy_bytes)
        rows, columns = _window(cost, height, width, size)
        if candidate.peak_bytes <= budget and cost.admits(rows, columns):
            return candidate
        if size <= SMALLEST_TILE and not cost.admits(rows, columns):
            raise BackendUnavailable(
                f"the smallest tile is {columns}x{rows} pixels with its margin, more than the backend takes at once;"
                " take another backend, or an engine for larger frames"
            )
        if size <= SMALLEST_TILE:
            raise MemoryBudgetError(
                f"the smallest tile needs {candidate.peak_bytes / 2**20:.1f} MiB,"
                f" {max(0, budget) / 2**20:.1f} MiB are left of the budget; raise --memory"
            )
        size = max(SMALLEST_TILE, size * 7 // 8)


def _tiled(cost: Footprint, height: int, width: int, size: int, copy_bytes: int) -> Plan:
    rows, columns = _window(cost, height, width, size)
    band = cost.band(rows, columns)
    return Plan(band, size, cost.peak_bytes(rows, columns, band, copy_bytes))


def _window(cost: Footprint, height: int, width: int, size: int) -> tuple[int, int]:
    """Rows and columns of the largest window that `tiles` will cut, not of the largest that it might."""
    halo = cost.radius or 0
    rows, columns = (
        min(length, max(end - start for start, end in _spans(length, size)) + 2 * halo) for length in (height, width)
    )
    return rows, columns
