"""Timing several candidates so that a slow minute of the machine slows all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)


def interleave(
    candidates: Mapping[Key, Callable[[], object]],
    runs: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Key, list[float]]:
    """Run every candidate once a round, the order turned round each time, and time each run.

    A candidate must return only when its result is there: one that ends in host memory does.

    Units:  milliseconds
    """
    samples: dict[Key, list[float]] = {key: [] for key in candidates}
    order = list(candidates)
    for _ in range(runs):
        for key in order:
            start = clock()
            candidates[key]()
            samples[key].append((clock() - start) * 1e3)
        # Who runs after whom matters (caches, clock speed), so nobody always follows the same one.
        order.reverse()
    return samples
