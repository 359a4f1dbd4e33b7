"""Timing several candidates so that a slow minute of the machine slows all of them alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import torch

from srgan_fast.bench.device import is_cuda, synchronise
from srgan_fast.graph import Replay

Key = TypeVar("Key", bound=Hashable)

# A sample on a GPU lasts at least this long, so that the wait at its end is lost in it.
_SAMPLE_MS = 5.0
_MOST_CALLS = 200


def interleave(
    candidates: Mapping[Key, Callable[[], object]],
    runs: int,
    clock: Callable[[], float] = time.perf_counter,
    *,
    device: str = "cpu",
    calls: Mapping[Key, int] | None = None,
    events: bool = False,
) -> dict[Key, list[float]]:
    """Time every candidate once a round, the order turned round each time; a sample is the mean of its `calls`.

    On a GPU a sample ends when the device has nothing left to do, or with `events` it is what the device says that
    passed between two marks in the current stream. Caches are left as they are: L2 is warm, as in a running pipeline.

    Units:  milliseconds a call
    """
    samples: dict[Key, list[float]] = {key: [] for key in candidates}
    order = list(candidates)
    for _ in range(runs):
        for key in order:
            count = calls[key] if calls else 1
            if events:
                passed_ms = _between_events(candidates[key], count)
            else:
                start = clock()
                for _ in range(count):
                    candidates[key]()
                synchronise(device)
                passed_ms = (clock() - start) * 1e3
            samples[key].append(passed_ms / count)
        # Who runs after whom matters (caches, clock speed), so nobody always follows the same one.
        order.reverse()
    return samples


def calls_for(run: Callable[[], object], device: str) -> int:
    """How many calls make a sample that is long enough: 1 on a CPU, where each call ends by itself."""
    if not is_cuda(device):
        return 1
    synchronise(device)
    start = time.perf_counter()
    run()
    synchronise(device)
    once_ms = (time.perf_counter() - start) * 1e3
    return max(1, min(_MOST_CALLS, math.ceil(_SAMPLE_MS / once_ms)))


def _between_events(run: Callable[[], object], count: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    for _ in range(count):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def captured(run: Callable[[], object], count: int) -> Callable[[], object]:
    """`count` calls as one CUDA graph: the host launches once for all, so that its own pace is not what is measured."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(count):
            run()
    graph.replay()
    synchronise("cuda")
    return Replay(graph, run)
