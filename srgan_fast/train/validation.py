"""What a run is judged by: PSNR and SSIM on whole images, in float32, on the device of the run."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from srgan_fast.evaluate.metrics import score
from srgan_fast.kernels.parity import exact_float32
from srgan_fast.model import Generator
from srgan_fast.train.config import TrainConfig
from srgan_fast.train.data import degrade
from srgan_fast.train.store import read_source

Pair = tuple[Tensor, Tensor]


def read_validation(source: Path, config: TrainConfig) -> list[Pair]:
    """LR and HR of every image in a folder or a pack, uint8 on the CPU; LR by the degradation of the run.

    Raises:  UsageError, InputError for what does not do
    """
    scale = config.generator.scale
    smallest = 11 + 2 * scale  # SSIM's window inside the border that a score leaves out
    store = read_source(source, smallest, scale if config.degradation == "pairs" else None, option=None)
    if store.lows is not None:
        return [(store.low(index), store.image(index)) for index in range(len(store))]
    pairs = []
    for index in range(len(store)):
        image = store.image(index)
        hr = image[:, : image.shape[1] // scale * scale, : image.shape[2] // scale * scale]
        pairs.append((degrade(hr, config), hr))
    return pairs


def validate(generator: Generator, pairs: list[Pair]) -> dict[str, float]:
    """Mean PSNR and SSIM (y601) of a generator in eval mode."""
    device = next(generator.parameters()).device
    scores = []
    for lr, hr in pairs:
        with torch.inference_mode(), exact_float32(device):
            sr = generator(lr[None].to(device) / 255.0)[0].float()
        pixels = (sr + 1).mul(127.5).clamp(0, 255).add(0.5).floor().to(torch.uint8).cpu()
        scores.append(score(hr, pixels, "y601", generator.scale))
    return {
        "val_psnr_db": sum(s.psnr_db for s in scores) / len(scores),
        "val_ssim": sum(s.ssim for s in scores) / len(scores),
    }


def middle_crops(pairs: list[Pair], config: TrainConfig, count: int) -> Pair | None:
    """Crops of the first images that are large enough, in the units of training; None if there is none."""
    size, scale = config.crop // config.generator.scale, config.generator.scale
    lows, highs = [], []
    for low, high in [pair for pair in pairs if min(pair[0].shape[1:]) >= size][:count]:
        y, x = (low.shape[1] - size) // 2, (low.shape[2] - size) // 2
        lows.append(low[:, y : y + size, x : x + size])
        highs.append(high[:, y * scale : (y + size) * scale, x * scale : (x + size) * scale])
    if not lows:
        return None
    return torch.stack(lows) / 255.0, torch.stack(highs) / 127.5 - 1.0
