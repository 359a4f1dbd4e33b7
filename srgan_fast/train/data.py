"""A folder of images, or of image pairs -> deterministic batches of (lr, hr) crops.

A batch is a function of (seed, step) alone: nothing has to be stored to resume, and two machines draw alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from srgan_fast.errors import InputError, UsageError
from srgan_fast.image import IMAGE_SUFFIXES, read_rgb
from srgan_fast.resize import gaussian_down, imresize_down
from srgan_fast.train.config import TrainConfig

# LR pixels of context around a crop, so that its LR is the one that the whole image would give.
_CONTEXT = 2


@dataclass(frozen=True)
class Skipped:
    """A file that training leaves out, and why."""

    path: Path
    reason: str


class CropDataset:
    """HR images in memory as uint8, and the crops drawn from them; `lows` are their LR where those are given."""

    def __init__(self, images: Sequence[Tensor], config: TrainConfig, lows: Sequence[Tensor] | None = None) -> None:
        if not images:
            raise InputError("expected at least one training image, got none")
        if (lows is None) == (config.degradation == "pairs"):
            raise UsageError(f"expected LR images with degradation pairs and only there, got {config.degradation}")
        self.images, self.config = list(images), config
        self.lows = None if lows is None else list(lows)

    def digest(self) -> str:
        """What identifies the images: another set, or another order, draws other batches."""
        total = hashlib.sha256()
        for image in (*self.images, *(self.lows or ())):
            total.update(repr(tuple(image.shape)).encode())
            total.update(image.contiguous().numpy())
        return total.hexdigest()

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """The batch of a step.

        Shapes:  lr [batch, 3, crop/scale, crop/scale], hr [batch, 3, crop, crop]
        Units:   lr in [0, 1], hr in [-1, 1]; both on the uint8 grid
        """
        config, scale = self.config, self.config.generator.scale
        rng = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        count = len(self.images)
        rounds = -(-config.batch // count)
        order = torch.cat([torch.randperm(count, generator=rng) for _ in range(rounds)])[: config.batch]
        if self.lows is not None:
            return self._paired(order.tolist(), self.lows, rng)
        margin = _CONTEXT * scale
        crops = []
        for index in order.tolist():
            image = self.images[index]
            draw = torch.rand(3, generator=rng)
            y = int(draw[0] * (image.shape[1] - config.crop + 1))
            x = int(draw[1] * (image.shape[2] - config.crop + 1))
            crop = _window(image, y - margin, x - margin, config.crop + 2 * margin)
            crops.append(_turned(crop, int(draw[2] * 8)))
        wide = torch.stack(crops)
        lr = degrade(wide, config)[..., _CONTEXT:-_CONTEXT, _CONTEXT:-_CONTEXT]
        hr = wide[..., margin:-margin, margin:-margin]
        return lr / 255.0, hr / 127.5 - 1.0

    def _paired(self, order: list[int], lows: list[Tensor], rng: torch.Generator) -> tuple[Tensor, Tensor]:
        scale = self.config.generator.scale
        size = self.config.crop // scale
        lr: list[Tensor] = []
        hr: list[Tensor] = []
        for index in order:
            low, high = lows[index], self.images[index]
            draw = torch.rand(3, generator=rng)
            y = int(draw[0] * (low.shape[1] - size + 1))
            x = int(draw[1] * (low.shape[2] - size + 1))
            for image, factor, crops in ((low, 1, lr), (high, scale, hr)):
                rows = slice(y * factor, (y + size) * factor)
                columns = slice(x * factor, (x + size) * factor)
                crops.append(_turned(image[:, rows, columns], int(draw[2] * 8)))
        return torch.stack(lr) / 255.0, torch.stack(hr) / 127.5 - 1.0


def degrade(image: Tensor, config: TrainConfig) -> Tensor:
    """The LR of HR images, by the kernel that the run trains against.

    Raises:  UsageError for degradation pairs, whose LR is read and never made
    """
    if config.degradation == "pairs":
        raise UsageError("expected LR images beside the HR ones with degradation pairs, got HR alone; add a folder low")
    if config.degradation == "gaussian":
        return gaussian_down(image, config.generator.scale, config.blur_sigma)
    return imresize_down(image, config.generator.scale)


def _turned(crop: Tensor, turn: int) -> Tensor:
    """One of the eight ways in which a square can lie."""
    crop = crop.rot90(turn % 4, (1, 2))
    return crop.flip(2) if turn >= 4 else crop


def _window(image: Tensor, y: int, x: int, size: int) -> Tensor:
    """A square of an image that may reach over its border, where the border pixel repeats."""
    height, width = image.shape[1:]
    top, left = max(0, -y), max(0, -x)
    bottom, right = max(0, y + size - height), max(0, x + size - width)
    inside = image[:, y + top : y + size - bottom, x + left : x + size - right]
    if not (top or left or bottom or right):
        return inside
    padded = F.pad(inside[None].float(), (left, right, top, bottom), mode="replicate")
    return padded[0].to(torch.uint8)


def read_folder(folder: Path, smallest: int) -> tuple[list[Tensor], list[Skipped]]:
    """Every image under a folder that is at least `smallest` pixels on each side, and what was left out."""
    if not folder.is_dir():
        raise UsageError(f"expected a folder of training images, got {folder}; name an existing folder")
    images, skipped = [], []
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES):
        try:
            image = read_rgb(path)
        except InputError as error:
            skipped.append(Skipped(path, str(error)))
            continue
        if min(image.shape[1:]) < smallest:
            skipped.append(Skipped(path, f"{image.shape[2]}x{image.shape[1]} is smaller than a {smallest} crop"))
            continue
        images.append(image)
    if not images:
        raise InputError(
            f"expected images of at least {smallest}x{smallest} under {folder}, got none"
            f" ({len(skipped)} skipped); add images or lower --crop"
        )
    return images, skipped


def read_pairs(folder: Path, scale: int, smallest: int) -> tuple[list[Tensor], list[Tensor], list[Skipped]]:
    """HR images of `folder`/high, their LR of the same stem in `folder`/low, and what was left out.

    Raises:  UsageError without the two folders; InputError if no pair is left
    """
    for part in ("high", "low"):
        if not (folder / part).is_dir():
            raise UsageError(f"expected {folder} to hold the folders high and low, found no {part}; make it")
    found = {
        part: {p.stem: p for p in sorted((folder / part).iterdir()) if p.suffix.lower() in IMAGE_SUFFIXES}
        for part in ("high", "low")
    }
    highs, lows, skipped = [], [], []
    for stem in sorted(found["high"].keys() | found["low"].keys()):
        paths = [found[part].get(stem) for part in ("high", "low")]
        if None in paths:
            missing = "high" if paths[0] is None else "low"
            path = paths[1] if paths[0] is None else paths[0]
            assert path is not None
            skipped.append(Skipped(path, f"{missing} holds no image named {stem}"))
            continue
        path = found["high"][stem]
        try:
            high, low = read_rgb(path), read_rgb(found["low"][stem])
        except InputError as error:
            skipped.append(Skipped(path, str(error)))
            continue
        if high.shape[1:] != (low.shape[1] * scale, low.shape[2] * scale):
            sizes = f"{high.shape[2]}x{high.shape[1]} and {low.shape[2]}x{low.shape[1]}"
            skipped.append(Skipped(path, f"high and low are {sizes}, not {scale} to 1"))
        elif min(high.shape[1:]) < smallest:
            skipped.append(Skipped(path, f"{high.shape[2]}x{high.shape[1]} is smaller than a {smallest} crop"))
        else:
            highs.append(high)
            lows.append(low)
    if not highs:
        raise InputError(
            f"expected pairs of at least {smallest}x{smallest} under {folder}, got none ({len(skipped)} skipped);"
            " give high and low the same file names, or lower --crop"
        )
    return highs, lows, skipped
