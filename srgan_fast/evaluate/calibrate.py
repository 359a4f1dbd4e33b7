"""Finds the int8 scales of a network on images, and refuses them where int8 loses too much against the originals."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from srgan_fast.calibration import Calibration, quantised_layers
from srgan_fast.community import bounds
from srgan_fast.errors import BackendUnavailable, ParityError, UsageError
from srgan_fast.evaluate.benchmark import images, pixels
from srgan_fast.evaluate.emulate import compare, emulated
from srgan_fast.kernels.quantise_int8 import LEVELS
from srgan_fast.rewrite import folded
from srgan_fast.weights import Model

LIMIT_DB = 0.1
PERCENTILE = 99.99


def calibrate(
    model: Model,
    folder: Path,
    *,
    percentile: float = PERCENTILE,
    limit_db: float = LIMIT_DB,
    on_image: Callable[[str], None] | None = None,
) -> Calibration:
    """Run the folded network in float32 on the images of a folder, made small as for training, and set the scales.

    A scale puts the largest of the images' percentiles of a tensor's absolute values at 127. Then int8 is computed, to
    the bit as the kernels do, and its mean PSNR against the originals (y601) held against that of float32.

    Raises:  UsageError for a percentile or limit that is none, or a network that int8 does not cover; InputError for
             images that cannot be used; ParityError if int8 loses more than the limit
    """
    if not 50 <= percentile <= 100:
        raise UsageError(f"expected a percentile from 50 to 100, got {percentile:g}; 100 is the largest value")
    if not 0 < limit_db < math.inf:
        raise UsageError(f"expected a limit above 0 dB, got {limit_db:g}; {LIMIT_DB} is usual")
    said = on_image or (lambda text: None)
    network = folded(model.network)
    layers = quantised_layers(network)
    found = Calibration(
        scales=dict.fromkeys(layers, 1.0),
        weights=model.info.digest,
        percentile=float(percentile),
        images=0,
        images_sha256="",
        psnr_db=0.0,
        drop_db=0.0,
        limit_db=float(limit_db),
    )
    try:
        # What int8 cannot do is said before any image is read.
        emulated(replace(model, calibration=found), "int8")
    except BackendUnavailable as error:
        raise UsageError(f"{error}; take fp16") from error
    largest = dict.fromkeys(layers, 0.0)
    seen = hashlib.sha256()
    files = images(folder)
    for path in files:
        hr, lr = pixels(path, None, model.info.scale)
        seen.update(f"{tuple(hr.shape)}\n".encode() + hr.numpy().tobytes())
        for name, value in _largest(network, layers, lr, model, percentile).items():
            largest[name] = max(largest[name], value)
        said(f"{path.name}: values seen")
    scales = {name: _float32(max(value, 1e-6) / LEVELS) for name, value in largest.items()}
    found = replace(found, scales=scales, images=len(files), images_sha256=seen.hexdigest())
    candidate = replace(model, calibration=found)
    scores = compare(candidate, folder, None, ("int8",), lambda name: said(f"{name}: int8 compared"))["int8"]
    plain_db, int8_db = (math.fsum(each[key] for each in scores) / len(scores) for key in ("plain_psnr_db", "psnr_db"))
    drop_db = plain_db - int8_db
    if not drop_db <= limit_db:
        raise ParityError(
            f"expected int8 to lose at most {limit_db:g} dB, got {drop_db:.3g} dB on {len(files)} images"
            f" ({plain_db:.3f} dB in fp32); nothing is written: take more images, another --percentile, or fp16"
        )
    return replace(found, psnr_db=plain_db, drop_db=drop_db)


def _largest(
    network: Any, layers: dict[str, nn.Conv2d], lr: Tensor, model: Model, percentile: float
) -> dict[str, float]:
    """The percentile of the absolute values that each convolution reads."""
    found: dict[str, float] = {}

    def look(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            values = args[0].abs().reshape(-1)
            above = round((1 - percentile / 100) * values.numel())
            found[name] = float(values.topk(above + 1).values[-1]) if above else float(values.max())

        return hook

    hooks = [conv.register_forward_pre_hook(look(name)) for name, conv in layers.items()]
    low, high = bounds(model.info.input_range)
    try:
        with torch.inference_mode():
            network(lr[None].float() / 255 * (high - low) + low)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _float32(value: float) -> float:
    return torch.tensor(value, dtype=torch.float32).item()
