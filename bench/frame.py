"""How fast a frame is upscaled: the plain network as a user would write it, against each backend, interleaved."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from srgan_fast.backends import BACKENDS
from srgan_fast.backends.probe import Ok
from srgan_fast.bench.record import latency, record
from srgan_fast.bench.timer import interleave
from srgan_fast.community import bounds
from srgan_fast.upscaler import Upscaler
from srgan_fast.weights import Model, load

# A faster result that is further than this from plain float32 is another result.
_LEAST_DB = {"bf16": 40.0, "fp16": 60.0}

Run = Callable[[], NDArray[np.uint8]]


def measure(model_name: str, height: int, width: int, runs: int, device: str) -> list[dict[str, Any]]:
    """Time the plain NCHW float32 module and every available backend in each precision; one record each, plain first.

    Raises:  ValueError for runs below 1; what `Upscaler` raises for the model and the device
    """
    if runs < 1:
        raise ValueError(f"expected at least 1 run, got {runs}")
    model = load(model_name)
    # Refuses a device that is not there, and says what `auto` is, before anything is timed.
    device = Upscaler(model, device=device).device
    frame = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    makers: dict[tuple[str, str], Callable[[], Run]] = {("plain", "fp32"): lambda: _plain(model, frame, device)}
    precisions = ("fp32", "bf16") if device == "cpu" else ("fp32", "fp16", "bf16")
    for backend, entry in BACKENDS.items():
        if isinstance(entry.probe(device), Ok):
            for precision in precisions:
                makers[backend, precision] = _maker(model, frame, backend, device, precision)
    candidates: dict[tuple[str, str], Run] = {}
    compile_s, first_ms, results = {}, {}, {}
    for key, make in makers.items():
        start = time.perf_counter()
        candidates[key] = make()
        compile_s[key] = time.perf_counter() - start
        start = time.perf_counter()
        results[key] = candidates[key]()
        first_ms[key] = (time.perf_counter() - start) * 1e3
    samples = interleave(candidates, runs)
    baseline = latency(samples["plain", "fp32"])
    records = []
    for (impl, precision), values in samples.items():
        quality = compare_pixels(results[impl, precision], results["plain", "fp32"], precision)
        passed = quality["gate"] == "pass"
        times = latency(values)
        # A red gate leaves no figure behind that could be quoted as a speed-up.
        derived = {"fps": 1e3 / times["p50"], "speedup": baseline["p50"] / times["p50"]} if passed else {}
        records.append(
            record(
                "frame",
                model.info.name,
                weights=model.info.digest,
                impl=impl,
                baseline="plain",
                dtype=precision,
                shape={"n": 1, "c": 3, "h": height, "w": width, "scale": model.info.scale},
                latency_ms=times,
                first_ms=first_ms[impl, precision],
                compile_s=compile_s[impl, precision],
                derived=derived,
                quality=quality,
            )
        )
    return records


def _plain(model: Model, frame: NDArray[np.uint8], device: str) -> Run:
    # A copy: on a GPU `to` would move the network of the caller's model.
    network: Any = copy.deepcopy(model.network).to(device)
    (in_low, in_high), (out_low, out_high) = (
        [bound.to(device) for bound in bounds(colours)] for colours in (model.info.input_range, model.info.output_range)
    )

    def run() -> NDArray[np.uint8]:
        with torch.inference_mode():
            lr = torch.from_numpy(frame).to(device).permute(2, 0, 1)[None].contiguous().float() / 255
            hr = network(lr * (in_high - in_low) + in_low)[0]
            pixels = ((hr - out_low) / (out_high - out_low) * 255).clamp(0, 255).add(0.5).floor().to(torch.uint8)
            return pixels.permute(1, 2, 0).cpu().numpy()

    return run


def _maker(model: Model, frame: NDArray[np.uint8], backend: str, device: str, precision: str) -> Callable[[], Run]:
    def make() -> Run:
        upscaler = Upscaler(model, backend=backend, device=device, precision=precision)
        return lambda: upscaler(frame, layout="HWC")

    return make


def compare_pixels(result: NDArray[np.uint8], plain: NDArray[np.uint8], precision: str) -> dict[str, Any]:
    """How far a result is from plain float32, and whether that passes for its precision.

    In fp32 only values on a rounding edge may fall the other way, by one level: one in a thousand, and four in a small
    frame, where one in a thousand is none. Another precision has to reach its PSNR.
    """
    off = np.abs(result.astype(np.int64) - plain)
    mse = float(np.square(off).mean())
    psnr_db = None if mse == 0 else float(10 * np.log10(255.0**2 / mse))
    if precision == "fp32":
        passed = off.max() <= 1 and np.count_nonzero(off) <= 4 + off.size // 1000
    else:
        passed = psnr_db is None or psnr_db >= _LEAST_DB[precision]
    return {
        "gate": "pass" if passed else "fail",
        "psnr_db_vs_plain": psnr_db,
        "largest_difference_levels": int(off.max()),
        "differing_values": int(np.count_nonzero(off)),
    }
