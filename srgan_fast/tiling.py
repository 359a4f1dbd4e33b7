"""Bounded memory without a changed pixel: how a frame is cut so that the pieces equal the whole.

Two cuts, both exact. Bands: the network's trunk sees the whole frame and its tail, where nearly all memory goes, a
few rows at a time. Tiles: the network sees a window with as much context as its receptive field reaches. At the
border of the frame a window ends where the frame ends, because there the network's own zero padding belongs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from srgan_fast.errors import MemoryBudgetError, UsageError
from srgan_fast.model import receptive_radius

# A tail of this many bytes fits the caches and page tables comfortably; larger bands gain nothing on a CPU.
_BAND_BYTES = 192 << 20
_SMALLEST_BAND = 16
_SMALLEST_TILE = 16


@dataclass(frozen=True)
class Footprint:
    """What a network costs, read off its layers.

    Units:  bytes a LR pixel; radii in LR pixels. `radius` is None when a layer looks at the whole frame.
    """

    trunk_bytes: float
    tail_bytes: float
    radius: int | None
    tail_radius: int

    def peak_bytes(self, height: int, width: int, band: int) -> int:
        """Working memory of one frame, beyond its input and output."""
        rows = min(height, band + 2 * self.tail_radius)
        return int(self.trunk_bytes * height * width + self.tail_bytes * rows * width)


def footprint(network: nn.Module, itemsize: int) -> Footprint:
    """Measure a network's live bytes by running it on a small frame; `itemsize` is that of its inner tensors.

    The trunk keeps three tensors of its width alive: the long skip, the block's input, the one being written. The
    tail keeps what its hungriest layer reads and writes.
    """
    size = 8
    seen: list[int] = []

    def note(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        seen.append(args[0].numel() + out.numel())

    lr = torch.zeros(1, 3, size, size)
    with torch.inference_mode():
        features = network.trunk(lr)  # type: ignore[operator]
        hooks = [m.register_forward_hook(note) for m in network.modules() if not list(m.children())]
        try:
            hr = network.tail(features, lr)  # type: ignore[operator]
        finally:
            for hook in hooks:
                hook.remove()
    pixels = size * size
    tail = max([*seen, features.numel() + hr.numel()]) * itemsize
    # The picture itself passes through float32 twice: scaled to [0, 1] and rounded.
    picture = 2 * hr.numel() * 4
    return Footprint(
        trunk_bytes=3 * features.numel() * 4 / pixels,
        tail_bytes=max(tail, picture) / pixels,
        radius=receptive_radius(network),
        tail_radius=receptive_radius(network, tail_only=True) or 0,
    )


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
    """How one frame is run: in bands of `band` rows, and in tiles that keep `tile` pixels a side unless it is None."""

    band: int
    tile: int | None
    peak_bytes: int


def plan(cost: Footprint, height: int, width: int, *, tile: int | None, budget_bytes: int | None) -> Plan:
    """Choose the cut of a frame before anything is allocated.

    `budget_bytes` is what the run may use beyond the frame and its result; None is unlimited. A `tile` that the user
    asked for is taken as it is.

    Raises:  MemoryBudgetError if no cut fits; UsageError for tiles of a network that looks at the whole frame
    """
    if tile is not None:
        if tile < 1:
            raise UsageError(f"expected a tile of at least 1 pixel, got {tile}")
        if cost.radius is None and tile < max(height, width):
            raise UsageError(
                "this network normalises over the whole frame, so tiles would change its picture; leave --tile out"
            )
        return _tiled(cost, height, width, tile)
    band = max(_SMALLEST_BAND, int(_BAND_BYTES / (cost.tail_bytes * width)))
    whole = Plan(band, None, cost.peak_bytes(height, width, band))
    if budget_bytes is None or whole.peak_bytes <= budget_bytes:
        return whole
    narrow = Plan(_SMALLEST_BAND, None, cost.peak_bytes(height, width, _SMALLEST_BAND))
    if narrow.peak_bytes <= budget_bytes:
        return narrow
    if cost.radius is None:
        raise MemoryBudgetError(
            f"this network normalises over the whole frame and cannot be tiled: {width}x{height} needs"
            f" {narrow.peak_bytes / 2**20:.0f} MiB, {budget_bytes / 2**20:.0f} MiB are left; raise --memory"
        )
    size = max(height, width)
    while True:
        candidate = _tiled(cost, height, width, size)
        if candidate.peak_bytes <= budget_bytes:
            return candidate
        if size <= _SMALLEST_TILE:
            raise MemoryBudgetError(
                f"the smallest tile needs {candidate.peak_bytes / 2**20:.0f} MiB,"
                f" {max(0, budget_bytes) / 2**20:.0f} MiB are left of the budget; raise --memory"
            )
        size = max(_SMALLEST_TILE, size * 7 // 8)


def _tiled(cost: Footprint, height: int, width: int, size: int) -> Plan:
    halo = cost.radius or 0
    # The largest window that `tiles` will cut, not the largest that it might.
    rows, columns = (
        min(length, max(end - start for start, end in _spans(length, size)) + 2 * halo) for length in (height, width)
    )
    band = max(_SMALLEST_BAND, int(_BAND_BYTES / (cost.tail_bytes * columns)))
    return Plan(band, size, cost.peak_bytes(rows, columns, band))
