"""What a TensorRT engine is worth before it is published: its pictures against eager's, its speed against all others'.

Both are taken with the backend itself, made of the engine that is not published yet.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from srgan_fast.backends import BACKENDS, Backend
from srgan_fast.backends.probe import Ok
from srgan_fast.backends.selfcheck import Disagrees, check_frames, hold
from srgan_fast.backends.tensorrt import TensorRTBackend
from srgan_fast.bench.device import is_cuda
from srgan_fast.bench.record import latency
from srgan_fast.bench.timer import calls_for, interleave
from srgan_fast.errors import BackendUnavailable, ParityError, UsageError
from srgan_fast.tensorrt.engines import Findings, Pair
from srgan_fast.weights import Model

_RUNS = 15
_WARM_UP = 3
# A small frame, where a launch costs as much as the work.
_SMALL = (64, 64)

_log = logging.getLogger(__name__)


def judge(model: Model, precision: str, device: str, on_stage: Callable[[str], object]) -> Callable[[Pair], Findings]:
    """What `engines.build` asks of a new pair; `on_stage` is told of each size that is held or timed.

    Raises, when it is called:  ParityError where the pictures are not eager's; BackendUnavailable where it fails
    """

    def judged(pair: Pair) -> Findings:
        sizes = sizes_of(pair.entry.options)
        agreement = []
        try:
            on_stage("loading")
            backend = TensorRTBackend(model, device, precision, pair=pair)
            most = backend.footprint.most
            for width, height in sizes:
                on_stage(f"holding against eager at {width}x{height}")
                frames = check_frames(height, width)[: most[0] if most else 1]
                agreement.append(f"{width}x{height}: {hold(backend, model, frames=frames)}")
        except Disagrees as error:
            raise ParityError(f"{error}; the engines are not kept") from error
        speed_ms = {}
        contenders = [backend, *others(backend, model)]
        for width, height in sizes:
            on_stage(f"timing against the other backends at {width}x{height}")
            frames = (check_frames(height, width)[:1] * 255).to(torch.uint8).to(device)
            speed_ms[f"{width}x{height}"] = timed(contenders, frames, model.info.scale)
        return Findings(tuple(agreement), speed_ms)

    return judged


def sizes_of(options: Mapping[str, Any]) -> list[tuple[int, int]]:
    """The width x height at which such engines are judged: small, those that they are tuned for, the largest."""
    (_, height, width) = options["profiles"][0]["max"]
    tuned = [(profile["opt"][2], profile["opt"][1]) for profile in options["profiles"]]
    small = min(_SMALL[0], width), min(_SMALL[1], height)
    return list(dict.fromkeys([small, *tuned, (width, height)]))


def others(backend: TensorRTBackend, model: Model) -> list[Backend]:
    """Every other backend that runs this model on the device of this one, in its precision."""
    device, found = str(backend.device), []
    for name, entry in BACKENDS.items():
        if name == backend.name or not isinstance(entry.probe(device), Ok):
            continue
        try:
            found.append(entry.create(model, device, backend.precision))
        except (BackendUnavailable, UsageError) as error:
            # Not every one of them knows every network, device and precision.
            _log.info("%s is not timed: %s", name, error)
    return found


def timed(backends: Sequence[Backend], frames: Tensor, scale: int) -> dict[str, float]:
    """Milliseconds that each backend takes for frames [n, h, w, 3], in turns; without those that lack memory for it."""
    device = str(frames.device)
    n, height, width, _ = frames.shape
    candidates: dict[str, Callable[[], object]] = {}
    for backend in backends:
        out = frames.new_empty(n, height * scale, width * scale, 3)
        call = partial(backend.run, frames, out, backend.footprint.band(height, width))
        try:
            for _ in range(_WARM_UP if is_cuda(device) else 1):
                call()
        except torch.OutOfMemoryError:
            _log.warning("%s is not timed at %dx%d: out of memory", backend.name, width, height)
            continue
        candidates[backend.name] = call
    calls = {name: calls_for(call, device) for name, call in candidates.items()}
    samples = interleave(candidates, _RUNS, device=device, calls=calls)
    return {name: latency(values)["p50"] for name, values in samples.items()}
