"""How much memory a frame takes: the peak of a process of its own, against what the planner said it would be."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from srgan_fast.bench.child import last_words
from srgan_fast.bench.record import record
from srgan_fast.errors import MemoryBudgetError, SRGANFastError
from srgan_fast.memory import peak_resident_bytes, resident_bytes
from srgan_fast.model import receptive_radius
from srgan_fast.upscaler import Upscaler
from srgan_fast.weights import load

# The part of the picture that is held against an uncut run, LR pixels a side.
_WINDOW = 48


def measure(
    model_name: str, height: int, width: int, precision: str, memory: str | None, backend: str = "eager"
) -> dict[str, Any]:
    """Upscale one frame on the CPU in a fresh process and record its peak beside the plan.

    Units:   bytes; `measured` and `planned` are beyond the process at rest and the result, `peak` is everything
    Raises:  what `Upscaler` raises; SRGANFastError with the child's last words when it fails otherwise
    """
    # A wrong choice is refused here, where it is one line; whether a budget is enough only the child knows.
    Upscaler(model_name, backend=backend, device="cpu", precision=precision, memory=memory)
    # A process's peak survives in its children's rusage, so the child reads its own high-water mark instead.
    asked = [model_name, str(height), str(width), precision, memory or "", backend]
    command = [sys.executable, "-m", __spec__.name, *asked]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = last_words(done)
        if done.returncode == MemoryBudgetError.exit_code:
            raise MemoryBudgetError(last)
        raise SRGANFastError(f"the measured process ended with {done.returncode} ({last}); try a smaller --size")
    said = json.loads(done.stdout)
    levels = said["largest_difference_levels"]
    # Windows of another shape may select another convolution in the library, which rounds otherwise: one level.
    passed = levels <= 1
    return record(
        "memory",
        said["name"],
        weights=said["weights"],
        impl=said["backend"],
        baseline="uncut",
        dtype=said["precision"],
        shape={"n": 1, "c": 3, "h": height, "w": width, "scale": said["scale"]},
        budget=memory,
        plan=said["plan"],
        bytes=said["bytes"],
        derived=derive(said["bytes"]) if passed else {},
        quality={"gate": "pass" if passed else "fail", "largest_difference_levels": levels},
    )


def derive(bytes_: dict[str, int]) -> dict[str, float]:
    """The two figures that are promised: the peak in GiB, and the plan over what was measured."""
    return {"peak_gib": bytes_["peak"] / 2**30, "planned_ratio": bytes_["planned"] / max(1, bytes_["measured"])}


def _child(
    model_name: str, height: int, width: int, precision: str, memory: str | None, backend: str
) -> dict[str, Any]:
    model = load(model_name)
    upscaler = Upscaler(model, backend=backend, device="cpu", precision=precision, memory=memory)
    frame = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    # What the first run of any size loads for good is not the frame's.
    upscaler(frame[:16, :16], layout="HWC")
    rest = resident_bytes()
    plan = upscaler.plan(height, width)
    result = upscaler(frame, layout="HWC")
    peak = peak_resident_bytes()
    if not peak:
        raise SRGANFastError("expected VmHWM in /proc/self/status, got none; the memory suite needs Linux")
    return {
        "name": model.info.name,
        "weights": model.info.digest,
        "backend": upscaler.backend_name,
        "precision": upscaler.precision,
        "scale": upscaler.scale,
        "plan": {"band": plan.band, "tile": plan.tile},
        "bytes": {"rest": rest, "peak": peak, "planned": plan.peak_bytes, "measured": peak - rest - result.nbytes},
        "largest_difference_levels": _difference(frame, result, upscaler),
    }


def _difference(frame: NDArray[np.uint8], result: NDArray[np.uint8], cut: Upscaler) -> int:
    """The largest difference, in levels, of a window in the middle from the same window run uncut with full context."""
    radius = receptive_radius(cut.model.network)
    halo = max(frame.shape) if radius is None else radius
    (y0, y1), (x0, x1) = (
        (max(0, length // 2 - _WINDOW // 2), min(length, length // 2 + _WINDOW // 2)) for length in frame.shape[:2]
    )
    top, left = max(0, y0 - halo), max(0, x0 - halo)
    window = np.ascontiguousarray(frame[top : y1 + halo, left : x1 + halo])
    whole = Upscaler(cut.model, backend=cut.backend_name, device="cpu", precision=cut.precision)(window, layout="HWC")
    s = cut.scale
    a = whole[(y0 - top) * s : (y1 - top) * s, (x0 - left) * s : (x1 - left) * s].astype(int)
    return int(np.abs(a - result[y0 * s : y1 * s, x0 * s : x1 * s]).max())


if __name__ == "__main__":
    _model, _height, _width, _precision, _memory, _backend = sys.argv[1:]
    try:
        print(json.dumps(_child(_model, int(_height), int(_width), _precision, _memory or None, _backend)))
    except SRGANFastError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
