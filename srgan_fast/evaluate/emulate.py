"""What a network gives in the precisions of a GPU, computed on any device from the program that runs there.

Each step is its op's reference on numbers that were rounded as there: weights and activations to the precision, sums in
float32. A kernel adds in another order, which is the only difference; int8 has none, its ops are exact. fp8 has no
kernels here, and is emulated at its best: e4m3, a scale for each output channel of the weights and for each activation
the scale of its own largest value, found as it runs; ends and residual stream in fp16, as with int8.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srgan_fast import kernels
from srgan_fast.backends.eager import quantise
from srgan_fast.backends.program import Program, Step, Unsupported, walk
from srgan_fast.errors import BackendUnavailable, ShapeError, UsageError
from srgan_fast.evaluate.benchmark import images, pair, pixels
from srgan_fast.evaluate.metrics import Score, score
from srgan_fast.kernels.contract import LEVELS
from srgan_fast.kernels.parity import exact_float32
from srgan_fast.rewrite import folded, without_last_shuffle
from srgan_fast.weights import Model

# The dtype of a precision's buffers of floats.
_FLOATS = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8": torch.float16,
    "int8": torch.float16,
}
PRECISIONS = tuple(_FLOATS)
_FP8 = torch.float8_e4m3fn
_CONVOLUTIONS = ("conv3x3", "conv3x3_shuffle")
_MOST_DB = 99.0
# Memory that an op is lent, which its reference does without.
_SCRATCH = "scratch"


def emulated(model: Model, precision: str) -> Callable[[Tensor], Tensor]:
    """A function from uint8 frames [n, h, w, 3] to float32 pictures [n, h*scale, w*scale, 3] in [0, 1].

    Raises:  UsageError for an unknown precision; BackendUnavailable for int8 without scales, or a network that the
             program does not cover
    """
    if precision not in _FLOATS:
        raise UsageError(f"expected a precision of {', '.join(_FLOATS)}, got {precision!r}")
    if precision == "int8" and model.calibration is None:
        raise BackendUnavailable(f"{model.info.name} has no int8 scales; make a file that has: srgan-fast calibrate")
    network = without_last_shuffle(folded(model.network))
    # fp8 scales its weights before it rounds them, so they come unrounded.
    dtype = torch.float32 if precision == "fp8" else _FLOATS[precision]
    calibration = model.calibration if precision == "int8" else None
    try:
        program = walk(network, model.info, dtype, torch.device("cpu"), calibration)
    except Unsupported as error:
        raise BackendUnavailable(f"{precision} does not cover this network: {error}") from error

    def run(frames: Tensor) -> Tensor:
        with torch.inference_mode(), exact_float32(frames.device):
            return _run(program, frames, precision)

    return run


def _run(program: Program, frames: Tensor, precision: str) -> Tensor:
    n, h, w, _ = frames.shape
    values = {"frames": frames}
    for step in program.steps:
        if "quantised" in step.buffers:
            name = step.buffers["quantised"]
            values[name] = torch.empty(program.buffers[name].shape(n, h, w), dtype=torch.int8)
        buffers = {argument: name for argument, name in step.buffers.items() if argument != _SCRATCH}
        arguments = {**step.constants, **{argument: values[name] for argument, name in buffers.items()}}
        if kernels.load(step.op).__dict__.get("EXACT"):
            values[step.out] = kernels.load(step.op).reference(**arguments)
        else:
            values[step.out] = _float_step(step, arguments, precision)
    return values["pixels"]


def _float_step(step: Step, arguments: dict[str, Any], precision: str) -> Tensor:
    rounded = _FLOATS[precision]
    for name, value in arguments.items():
        if precision == "fp8" and name in ("x", "weight") and step.op in _CONVOLUTIONS:
            arguments[name] = _as_fp8(value.float(), (0, 1) if name == "weight" else None)
        elif name == "weight":
            arguments[name] = value.to(rounded).float()
        elif isinstance(value, Tensor) and value.is_floating_point():
            arguments[name] = value.float()
    if "frames" in step.buffers.values():
        arguments["gain"] = arguments["gain"] / LEVELS[torch.uint8]
    if step.op == "head" and "gain" in arguments:
        frames, gain, offset = (arguments.pop(name) for name in ("x", "gain", "offset"))
        arguments["x"] = kernels.load("frame_input").reference(frames, gain, offset, rounded).float()
    elif step.op == "tail":
        # The picture as floats: what becomes of it, the comparison decides.
        return kernels.load("tail").reference(**arguments, dtype=torch.float32)
    return kernels.load(step.op).reference(**arguments).to(rounded)


def _as_fp8(values: Tensor, dims: tuple[int, ...] | None) -> Tensor:
    """Values rounded to e4m3 under a scale of the largest over `dims`, or of all."""
    largest = values.abs().amax(dims, keepdim=True) if dims else values.abs().max()
    scale = torch.finfo(_FP8).max / largest.clamp_min(1e-30)
    return (values * scale).to(_FP8).float() / scale


def compare(
    model: Model,
    hr_folder: Path,
    lr_folder: Path | None = None,
    precisions: Sequence[str] = PRECISIONS,
    on_image: Callable[[str], None] | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Score each precision on a folder of originals (y601), and hold its picture against that of fp32.

    LR images are found, or made, as `evaluate` does. For each precision one entry an image: `psnr_db` and `ssim`,
    `plain_psnr_db` and `plain_ssim` of fp32, and `mse` and `max_error` of the picture from that of fp32, on [0, 1].

    Raises:  what `emulated` raises; UsageError and InputError for images that cannot be used
    """
    runs = {precision: emulated(model, precision) for precision in dict.fromkeys(("fp32", *precisions))}
    files = images(hr_folder)
    lr_files = None if lr_folder is None else pair(files, images(lr_folder))
    found: dict[str, list[dict[str, Any]]] = {precision: [] for precision in precisions}
    for path in files:
        hr, lr = pixels(path, None if lr_files is None else lr_files[path], model.info.scale)
        pictures = {precision: run(lr.permute(1, 2, 0)[None].contiguous()) for precision, run in runs.items()}
        try:
            scores = {precision: _score(hr, picture, model.info.scale) for precision, picture in pictures.items()}
        except ShapeError as error:
            raise ShapeError(f"{path}: {error}") from None
        for precision in precisions:
            off = (pictures[precision].double() - pictures["fp32"].double()).abs()
            entry = {"name": path.name, "psnr_db": scores[precision].psnr_db, "ssim": scores[precision].ssim}
            entry |= {"plain_psnr_db": scores["fp32"].psnr_db, "plain_ssim": scores["fp32"].ssim}
            found[precision].append(entry | {"mse": float(off.square().mean()), "max_error": float(off.max())})
        if on_image is not None:
            on_image(path.name)
    return found


def _score(hr: Tensor, picture: Tensor, scale: int) -> Score:
    sr = quantise(picture.clone(), torch.uint8)[0].permute(2, 0, 1).contiguous()
    found = score(hr, sr, "y601", scale)
    # Capped: an image that one of two restores exactly must not decide a mean alone.
    return found._replace(psnr_db=min(found.psnr_db, _MOST_DB))
