"""How fast frames are upscaled: the plain network as a user would write it, against each backend, interleaved.

Frames lie on the device and results stay there: what a copy to the host costs is another question, the same for all.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from srgan_fast.backends import BACKENDS
from srgan_fast.backends.probe import Ok
from srgan_fast.bench import ceiling, peers
from srgan_fast.bench.child import answer, measured_in
from srgan_fast.bench.device import float32, is_cuda, peak_bytes, rest_bytes, synchronise
from srgan_fast.bench.figures import timed_figures
from srgan_fast.bench.record import latency, record
from srgan_fast.bench.timer import calls_for, interleave
from srgan_fast.bench.work import forward
from srgan_fast.community import bounds
from srgan_fast.errors import BackendUnavailable, UsageError
from srgan_fast.kernels import hopper, only
from srgan_fast.kernels.parity import GATES
from srgan_fast.upscaler import Upscaler, resolved
from srgan_fast.weights import Model, load

# TF32 keeps as many bits as fp16.
_GATE = {"tf32": "fp16"}
_DTYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int8": torch.int8,
}

# width x height of LR frames, and frames at once: what `srgan-fast bench` measures on a GPU when nothing is asked for.
SIZES = ((64, 64), (128, 128), (320, 180), (480, 270), (640, 360), (960, 540), (1920, 1080))
BATCHES = (1, 4, 8)

_WARM_UP = 3

_log = logging.getLogger(__name__)

Run = Callable[[], Tensor]
Key = tuple[str, str]


def measure(
    model_name: str,
    height: int,
    width: int,
    runs: int,
    device: str,
    *,
    batch: int = 1,
    with_peers: Iterable[str] = (),
) -> list[dict[str, Any]]:
    """Time the plain NCHW float32 module, its usual tunings, every available backend in each precision, and peers.

    One record each, plain first; `auto` is true in that of the backend and precision that a user gets who asks for
    none. The ceilings of the run are records of their own (`ceiling.measure`).

    Raises:  ValueError for runs or a batch below 1; what `Upscaler` raises for the model and the device;
             BackendUnavailable for a peer that is not installed
    """
    if runs < 1 or batch < 1:
        raise ValueError(f"expected at least 1 run of at least 1 frame, got {runs} of {batch}")
    model = load(model_name)
    # Refuses a device that is not there, and says what `auto` is, before anything is timed.
    device = resolved(device)
    pixels = np.random.default_rng(0).integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
    frames = torch.from_numpy(pixels).to(device)
    waiting = makers(model, frames, device, with_peers)
    ceilings = ceiling.measure(device)
    upscaler = Upscaler(model, device=device)
    chosen = upscaler.backend_name, upscaler.precision
    del upscaler
    candidates: dict[Key, Run] = {}
    made: dict[Key, dict[str, Any]] = {}
    results: dict[Key, NDArray[np.uint8]] = {}
    for key, make in waiting.items():
        rest = rest_bytes(device)
        start = time.perf_counter()
        try:
            run = make()
        except (BackendUnavailable, UsageError) as error:
            # Not every one of them knows every network, device and precision.
            _log.warning("%s %s left out: %s", *key, error)
            continue
        candidates[key] = run
        compile_s = time.perf_counter() - start
        start = time.perf_counter()
        result = run()
        synchronise(device)
        first_ms = (time.perf_counter() - start) * 1e3
        results[key] = result.cpu().numpy()
        made[key] = {"compile_s": compile_s, "first_ms": first_ms, "peak_bytes": peak_bytes(run, device, rest)}
        for _ in range(_WARM_UP if is_cuda(device) else 0):
            run()
    calls = {key: calls_for(run, device) for key, run in candidates.items()}
    samples = interleave(candidates, runs, device=device, calls=calls)
    raw = []
    for (impl, precision), values in samples.items():
        flops, moved = forward(model.network, (batch, 3, height, width), _DTYPES[precision].itemsize)
        raw.append(
            {
                "suite": "frame",
                "impl": impl,
                "baseline": "plain",
                "dtype": precision,
                "auto": (impl, precision) == chosen,
                "device": torch.device(device).type,
                "shape": {"n": batch, "c": 3, "h": height, "w": width, "scale": model.info.scale},
                "latency_ms": latency(values),
                "timing": {"clock": "wall, synchronised", "calls": calls[impl, precision], "l2": "not flushed"},
                **made[impl, precision],
                "flops": flops,
                "bytes": moved,
                "quality": compare_pixels(results[impl, precision], results["plain", "fp32"], precision),
            }
        )
    return [_finished(one, raw, ceilings, model) for one in raw]


def makers(model: Model, frames: Tensor, device: str, with_peers: Iterable[str] = ()) -> dict[Key, Callable[[], Run]]:
    """What can upscale these frames here, by implementation and precision: functions that make it ready, plain first.

    Raises:  BackendUnavailable for a peer that is not installed
    """
    found: dict[Key, Callable[[], Run]] = {("plain", "fp32"): lambda: _plain(model, frames, "fp32")}
    precisions: tuple[str, ...] = ("fp32", "bf16")
    if is_cuda(device):
        precisions = ("fp32", "fp16", "bf16")
        found["plain", "tf32"] = lambda: _plain(model, frames, "tf32")
        found["channels_last", "fp16"] = lambda: _plain(model, frames, "fp16", torch.channels_last)
    else:
        with_peers = (*peers.FIXED, *with_peers)
    for backend, entry in BACKENDS.items():
        if isinstance(entry.probe(device), Ok):
            # int8 is a matter of kernels, and of weights that have scales for it.
            some = (*precisions, "int8") if backend == "fused" and model.calibration is not None else precisions
            if backend in ("onnx", "tensorrt"):
                some = tuple(precision for precision in precisions if precision != "bf16")
            for precision in some:
                found[backend, precision] = _maker(model, frames, backend, device, precision)
    if ("fused", "fp16") in found and hopper.why_not(torch.device(device)) is None:
        # What the kernels for sm_90a bring.
        found["fused-triton", "fp16"] = _without_sm90(_maker(model, frames, "fused", device, "fp16"))
    for name in with_peers:
        peer = peers.available(name)
        found[name, peer.precision(device)] = _peer_maker(peer, model, frames, device)
    return found


def in_child(limit_s: float, *arguments: Any, **options: Any) -> list[dict[str, Any]]:
    """`measure` and its ceilings, in a process of its own (see `child.measured_in`)."""
    return measured_in(__spec__.name, limit_s, arguments, options)


def _finished(one: dict[str, Any], raw: list[dict[str, Any]], ceilings: Any, model: Model) -> dict[str, Any]:
    # A red gate leaves no figure behind that could be quoted as a speed-up.
    derived = timed_figures(one, raw, ceilings) if one["quality"]["gate"] == "pass" else {}
    fields = {key: value for key, value in one.items() if key not in ("suite", "quality")}
    return record(
        "frame", model.info.name, weights=model.info.digest, **fields, derived=derived, quality=one["quality"]
    )


def _plain(model: Model, frames: Tensor, precision: str, layout: torch.memory_format = torch.contiguous_format) -> Run:
    dtype, device = _DTYPES[precision], str(frames.device)
    # A copy: on a GPU `to` would move the network of the caller's model.
    network: Any = copy.deepcopy(model.network).to(device, dtype).to(memory_format=layout)  # type: ignore[call-overload]
    colours = (model.info.input_range, model.info.output_range)
    (in_low, in_high), (out_low, out_high) = ([bound.to(device) for bound in bounds(each)] for each in colours)

    def upscale(some: Tensor) -> Tensor:
        lr = some.permute(0, 3, 1, 2).float() / 255 * (in_high - in_low) + in_low
        hr = network(lr.to(dtype, memory_format=layout)).float()
        pixels = ((hr - out_low) / (out_high - out_low) * 255).clamp(0, 255).add(0.5).floor().to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).contiguous()

    at_once = [len(frames)]

    def run() -> Tensor:
        with torch.inference_mode(), float32(device, tf32=precision == "tf32"):
            while True:
                try:
                    if at_once[0] == len(frames):
                        return upscale(frames)
                    return torch.cat([upscale(some) for some in torch.split(frames, at_once[0])])
                except torch.OutOfMemoryError:
                    # What anyone would do whose batch does not fit.
                    if at_once[0] == 1:
                        raise
                at_once[0] = -(-at_once[0] // 2)
                torch.cuda.empty_cache()

    return run


def _maker(model: Model, frames: Tensor, backend: str, device: str, precision: str) -> Callable[[], Run]:
    def make() -> Run:
        upscaler = Upscaler(model, backend=backend, device=device, precision=precision)
        return lambda: upscaler(frames, layout="NHWC")

    return make


def _without_sm90(make: Callable[[], Run]) -> Callable[[], Run]:
    def make_so() -> Run:
        with only("triton"):
            run = make()

        def call() -> Tensor:
            # The first one captures the graph.
            with only("triton"):
                return run()

        return call

    return make_so


def _peer_maker(peer: peers.Peer, model: Model, frames: Tensor, device: str) -> Callable[[], Run]:
    def make() -> Run:
        upscale = peer.make(model, device)
        return lambda: upscale(frames)

    return make


def compare_pixels(result: NDArray[np.uint8], plain: NDArray[np.uint8], precision: str) -> dict[str, Any]:
    """How far a result is from plain float32, and whether that passes for its precision.

    In fp32 only values on a rounding edge may fall the other way, by one level: one in a thousand, and four in a small
    frame, where one in a thousand is none. Another precision has to reach its PSNR.
    """
    if result.shape != plain.shape:
        raise ValueError(f"expected results of shape {plain.shape}, got {result.shape}")
    off = np.abs(np.subtract(result, plain, dtype=np.int16))
    mse = float(np.square(off, dtype=np.float32).mean(dtype=np.float64))
    psnr_db = None if mse == 0 else float(10 * np.log10(255.0**2 / mse))
    largest, differing = int(off.max()), int(np.count_nonzero(off))
    if precision == "fp32":
        passed = largest <= 1 and differing <= 4 + off.size // 1000
    else:
        passed = psnr_db is None or psnr_db >= GATES[_GATE.get(precision, precision)].psnr_db
    return {
        "gate": "pass" if passed else "fail",
        "psnr_db_vs_plain": psnr_db,
        "largest_difference_levels": largest,
        "differing_values": differing,
    }


def _with_ceilings(*arguments: Any, **options: Any) -> list[dict[str, Any]]:
    found = measure(*arguments, **options)
    return [*ceiling.measure(resolved(arguments[4])), *found]


if __name__ == "__main__":
    answer(_with_ceilings)
