"""How fast a frame is upscaled: the plain network as a user would write it, against each backend, interleaved."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from srgan_fast.bench.record import latency, record
from srgan_fast.upscaler import Upscaler
from srgan_fast.weights import Model, load

# A faster result that is further than this from plain float32 is another result. In fp32 only values that lie on a
# rounding edge may fall the other way: one pixel in ten thousand by one level is 88 dB.
_GATE_DB = {"fp32": 80.0, "bf16": 40.0, "fp16": 60.0}

Run = Callable[[], NDArray[np.uint8]]


def measure(model_name: str, height: int, width: int, runs: int, device: str) -> list[dict[str, Any]]:
    """Time the plain NCHW float32 module and the eager backend in each precision; one record each, plain first."""
    model = load(model_name)
    frame = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    candidates: dict[tuple[str, str], Run] = {("plain", "fp32"): _plain(model, frame, device)}
    first_ms: dict[tuple[str, str], float] = {}
    precisions = ("fp32", "bf16") if device == "cpu" else ("fp32", "fp16", "bf16")
    for precision in precisions:
        upscaler = Upscaler(model, backend="eager", device=device, precision=precision)
        candidates["eager", precision] = _bound(upscaler, frame)
    results, samples = {}, {}
    for key, run in candidates.items():
        start = time.perf_counter()
        results[key] = run()
        first_ms[key] = (time.perf_counter() - start) * 1e3
        samples[key] = list[float]()
    for _ in range(runs):
        for key, run in candidates.items():
            start = time.perf_counter()
            run()
            samples[key].append((time.perf_counter() - start) * 1e3)
    baseline = latency(samples["plain", "fp32"])
    records = []
    for (impl, precision), values in samples.items():
        psnr = _psnr_db(results[impl, precision], results["plain", "fp32"])
        passed = psnr is None or psnr >= _GATE_DB[precision]
        times = latency(values)
        derived: dict[str, Any] = {"fps": 1e3 / times["p50"]}
        if passed:
            derived["speedup"] = baseline["p50"] / times["p50"]
        records.append(
            record(
                "frame",
                model_name,
                impl=impl,
                baseline="plain",
                dtype=precision,
                shape={"n": 1, "c": 3, "h": height, "w": width, "scale": model.info.scale},
                latency_ms=times,
                first_ms=first_ms[impl, precision],
                derived=derived,
                quality={"gate": "pass" if passed else "fail", "psnr_db_vs_plain": psnr},
            )
        )
    return records


def _plain(model: Model, frame: NDArray[np.uint8], device: str) -> Run:
    network = model.network.to(device)

    def run() -> NDArray[np.uint8]:
        with torch.inference_mode():
            lr = torch.from_numpy(frame).to(device).permute(2, 0, 1)[None].contiguous().float() / 255
            low, high = model.info.input_range
            hr = network(lr * (high - low) + low)[0]  # type: ignore[operator]
            low, high = model.info.output_range
            pixels = ((hr - low) / (high - low) * 255).clamp(0, 255).add(0.5).floor().to(torch.uint8)  # type: ignore[operator]
            return pixels.permute(1, 2, 0).cpu().numpy()

    return run


def _bound(upscaler: Upscaler, frame: NDArray[np.uint8]) -> Run:
    return lambda: upscaler(frame, layout="HWC")


def _psnr_db(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float | None:
    mse = float(np.mean((a.astype(np.float64) - b) ** 2))
    return None if mse == 0 else float(10 * np.log10(255.0**2 / mse))
