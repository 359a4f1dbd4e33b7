"""What the steps of a run tell, and how long they take: kept on the device, read many at a time."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from torch import Tensor


class Meter:
    """The terms and times of up to `capacity` steps; only `read` waits for the device.

    `start` before the first step and after anything that is none, `loaded` when the batch is there, `add` after the
    step. On a GPU times are those of its own clock, so that a step costs the host nothing to be measured.
    """

    def __init__(self, device: torch.device, capacity: int) -> None:
        self._device, self._capacity = device, capacity
        self._values: Tensor | None = None
        self._names: list[str] = []
        self._count = 0
        # Where a step starts, where its batch is there; the start of the next is the end of the one before.
        self._events = [_event() for _ in range(2 * capacity + 1)] if self._timed else []
        self._marks = [0.0] * (2 * capacity + 1)

    @property
    def _timed(self) -> bool:
        return self._device.type == "cuda"

    @property
    def waiting(self) -> int:
        """The number of steps that have not been read."""
        return self._count

    def start(self) -> None:
        """The next step begins now; nothing may wait to be read."""
        self._count = 0
        self._mark(0)

    def loaded(self) -> None:
        """The batch of the next step is there."""
        self._mark(2 * self._count + 1)

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """Take the terms of a step, which may be overwritten by the next."""
        if self._values is None:
            self._names = list(terms)
            self._values = torch.empty(self._capacity, len(terms), device=self._device)
        torch.stack(list(terms.values()), out=self._values[self._count])
        self._count += 1
        self._mark(2 * self._count)

    def read(self) -> list[dict[str, float]]:
        """The terms of each step since the last `start`, with `loader_s` and `step_s`, in one copy."""
        if self._values is None or not self._count:
            return []
        rows = self._values[: self._count].tolist()
        records = []
        for index, row in enumerate(rows):
            times = {
                "loader_s": self._between(2 * index, 2 * index + 1),
                "step_s": self._between(2 * index + 1, 2 * index + 2),
            }
            records.append(dict(zip(self._names, row, strict=True)) | times)
        self._count = 0
        return records

    def _mark(self, index: int) -> None:
        if self._timed:
            self._events[index].record(torch.cuda.current_stream(self._device))
        else:
            self._marks[index] = time.perf_counter()

    def _between(self, first: int, second: int) -> float:
        if self._timed:
            self._events[second].synchronize()
            return self._events[first].elapsed_time(self._events[second]) / 1000
        return self._marks[second] - self._marks[first]


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
