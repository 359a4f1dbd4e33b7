"""A folder of images -> deterministic batches of (lr, hr) crops.

A batch is a function of (seed, step) alone: nothing has to be stored to resume, and two machines draw alike.
"""

from __future__ import annotations

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
    """HR images in memory as uint8, and the crops drawn from them."""

    def __init__(self, images: Sequence[Tensor], config: TrainConfig) -> None:
        if not images:
            raise InputError("expected at least one training image, got none")
        self.images, self.config = list(images), config

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
        margin = _CONTEXT * scale
        crops = []
        for index in order.tolist():
            image = self.images[index]
            draw = torch.rand(3, generator=rng)
            y = int(draw[0] * (image.shape[1] - config.crop + 1))
            x = int(draw[1] * (image.shape[2] - config.crop + 1))
            crop = _window(image, y - margin, x - margin, config.crop + 2 * margin)
            turn = int(draw[2] * 8)
            crop = crop.rot90(turn % 4, (1, 2))
            crops.append(crop.flip(2) if turn >= 4 else crop)
        wide = torch.stack(crops)
        if config.degradation == "gaussian":
            lr = gaussian_down(wide, scale, config.blur_sigma)
        else:
            lr = imresize_down(wide, scale)
        lr = lr[..., _CONTEXT:-_CONTEXT, _CONTEXT:-_CONTEXT]
        hr = wide[..., margin:-margin, margin:-margin]
        return lr / 255.0, hr / 127.5 - 1.0


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
