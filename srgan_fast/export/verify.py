"""Whether an exported file is right: by ONNX's checker, by our lint, and by what onnxruntime makes of it."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from srgan_fast.community import bounds
from srgan_fast.errors import ParityError
from srgan_fast.export.graph import INPUT, OUTPUT, Options
from srgan_fast.kernels import parity
from srgan_fast.kernels.contract import LEVELS
from srgan_fast.weights import Model

# Odd sizes, wide and high ones, one to three frames: no size may have got into a graph.
SHAPES = ((1, 24, 31), (2, 33, 17), (3, 9, 40))
_LEVELS = LEVELS[torch.uint8]


@dataclass(frozen=True)
class Gate:
    """How near frames must be to the reference.

    Units:  `max_error` of uint8 frames in levels, of float frames on [0, 1]; `off_share` of all values that differ at
            all; PSNR in dB
    """

    max_error: float
    off_share: float = 1.0
    psnr_db: float = 0.0


# By precision and frames.
GATES = {
    ("fp32", "float"): Gate(1e-5),
    ("fp32", "uint8"): Gate(1, off_share=1e-4),
    ("fp16", "float"): Gate(parity.GATES["fp16"].max_error, psnr_db=parity.GATES["fp16"].psnr_db),
    ("fp16", "uint8"): Gate(2, off_share=0.08, psnr_db=58.0),
}


@dataclass(frozen=True)
class Agreement:
    """Frames of all shapes held against a gate, whose units these figures have."""

    passed: bool
    max_error: float
    off_share: float
    psnr_db: float
    gate: Gate
    frames: str

    def __str__(self) -> str:
        word = "pass" if self.passed else "FAIL"
        if self.frames == "float":
            said = f"max error {self.max_error:.1e} (allowed {self.gate.max_error:.1e})"
        else:
            said = (
                f"max error {self.max_error:g} level{'s' * (self.max_error != 1)} (allowed {self.gate.max_error:g}),"
                f" {self.off_share:.3%} of the values off (allowed {self.gate.off_share:.2%})"
            )
        floor = f" (at least {self.gate.psnr_db:g})" if self.gate.psnr_db else ""
        return f"{word}: {said}, {self.psnr_db:.1f} dB{floor}"


def check_graph(content: bytes) -> None:
    """Hold a file against the rules of ONNX, with types and shapes inferred strictly, and those of our lint.

    Raises:  ParityError with the first fault
    """
    import onnx

    from srgan_fast.export.lint import faults

    try:
        graph = onnx.load_model_from_string(content)
        onnx.checker.check_model(graph, full_check=True)
        found = faults(graph)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ParityError(f"expected a graph that onnx accepts, got: {' '.join(str(error).split()):.200}") from error
    if found:
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        raise ParityError(f"expected a graph that every engine takes, got: {found[0]}{more}; please report it")


def compare(content: bytes, model: Model, options: Options) -> Agreement | None:
    """Run a file by onnxruntime on a CPU and hold it against the model's own network; None without onnxruntime.

    The reference is in float64: that of float32 is off by more than the gate allows in the default model.

    Raises:  ParityError for frames of another size than the network's
    """
    try:
        import onnxruntime
    except ImportError:
        return None

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.log_severity_level = 3  # errors, without advice on how it would run faster
    session = onnxruntime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])
    gate = GATES[options.precision, options.frames]
    errors = []
    for frames in map(partial(_frames, options), SHAPES):
        wanted = _reference(model, frames, options)
        (got,) = session.run([OUTPUT], {INPUT: frames})
        if got.shape != wanted.shape:
            raise ParityError(f"expected {wanted.shape} of frames {frames.shape}, got {got.shape}; please report it")
        errors.append(np.abs(got.astype(np.float64) - wanted).ravel())
    error = np.concatenate(errors)
    peak = 1 if options.frames == "float" else _LEVELS
    mse = float(np.square(error).mean())
    psnr_db = 10 * math.log10(peak**2 / mse) if mse > 0 else math.inf
    worst, share = float(error.max()), float((error > 0).mean())
    # A value that is no number makes the comparison of the worst false.
    passed = worst <= gate.max_error and share <= gate.off_share and psnr_db >= gate.psnr_db
    return Agreement(passed, worst, share, psnr_db, gate, options.frames)


def verify(content: bytes, model: Model, options: Options) -> Agreement | None:
    """Hold a file against everything that can be checked here; None where that is the graph alone.

    Raises:  ParityError for a graph with a fault, or frames beyond the gate
    """
    check_graph(content)
    agreement = compare(content, model, options)
    if agreement is not None and not agreement.passed:
        instead = "; --precision fp32 may hold" if options.precision == "fp16" else "; please report it"
        raise ParityError(f"expected onnxruntime to give what eager does, got {agreement}{instead}")
    return agreement


def _frames(options: Options, shape: tuple[int, int, int]) -> NDArray[Any]:
    """Waves of colour under some noise: smooth and rough as a photo is, with few values at the ends of the range."""
    random = np.random.default_rng(shape)
    rows, columns, colours = np.ogrid[: shape[1], : shape[2], :3]
    waves = 128 + 90 * np.sin(0.31 * columns + colours) * np.cos(0.23 * rows - colours)
    pixels = np.clip(waves + random.normal(0, 10, (*shape, 3)), 0, _LEVELS)
    if options.frames == "uint8":
        return pixels.astype(np.uint8)
    return np.ascontiguousarray((pixels / _LEVELS).astype(np.float32).transpose(0, 3, 1, 2))


def _reference(model: Model, frames: NDArray[Any], options: Options) -> NDArray[Any]:
    """The network of a model as it is, in float64, on such frames -> what the file should give."""
    lr = torch.from_numpy(frames).double()
    if options.frames == "uint8":
        lr = lr.permute(0, 3, 1, 2) / _LEVELS
    low, high = (bound.double() for bound in bounds(model.info.input_range))
    with torch.inference_mode():
        hr = copy.deepcopy(model.network).cpu().double()(lr * (high - low) + low)
    low, high = (bound.double() for bound in bounds(model.info.output_range))
    v = ((hr - low) / (high - low)).clamp(0, 1)
    if options.frames == "float":
        return v.numpy()
    return (v * _LEVELS + 0.5).floor().permute(0, 2, 3, 1).numpy()
