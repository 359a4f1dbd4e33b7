"""CUDA graphs: a fixed sequence of launches over memory that stays where it is, captured once and replayed.

On a device without graphs, which only the Triton interpreter of the tests has, a replay is the sequence itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Work = Callable[[], object]

# One capture at a time in a process; thread-local mode lets other threads go on launching meanwhile.
_CAPTURING = threading.Lock()


@dataclass(frozen=True)
class Replay:
    """A captured graph and its work: a graph has only addresses, and the work keeps the tensors behind them."""

    graph: Any
    work: Work

    def __call__(self) -> None:
        """Launch the work again, on the current stream."""
        self.graph.replay()

    def free(self) -> None:
        """End the graph now, whoever still holds this; it cannot be replayed any more."""
        self.graph.reset()


def capture(work: Work, device: torch.device, stream: torch.cuda.Stream | None) -> Work:
    """Run `work` twice to warm it up (kernels are compiled then), capture it, and return its replay.

    `work` launches on the current stream, and on others only between a fork from it and a join. What it allocates while
    it is captured lies in the graph's own memory, which every replay writes anew. The replay keeps `work` alive, and
    with it whatever tensors it holds. Warming up is running: what must not change by it, the caller puts back.
    """
    if device.type != "cuda":
        return work
    assert stream is not None
    failed: list[Exception] = []
    # In the stream from the outside: where a capture fails, torch.cuda.graph does not go back to the one before.
    with _CAPTURING, torch.cuda.device(device), torch.cuda.stream(stream):
        for _ in range(2):
            work()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                try:
                    work()
                except Exception as error:
                    failed.append(error)
                    raise
        except Exception:
            # The end of a capture that has failed is an error too, which hides what went wrong.
            if failed:
                raise failed.pop() from None
            raise
    return Replay(graph, work)


def stream_for(device: torch.device) -> torch.cuda.Stream | None:
    """A stream of its own on a GPU; None elsewhere."""
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]


class Ordered:
    """Work on one stream, after what the caller's stream has been given and before what it is given next."""

    def __init__(self, stream: torch.cuda.Stream, tensors: Iterable[Tensor]) -> None:
        self.stream, self.tensors = stream, tensors

    def __enter__(self) -> None:
        self.caller = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(self.caller)
        self._inside = torch.cuda.stream(self.stream)
        self._inside.__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        for tensor in self.tensors:
            # They may belong to a third stream: their memory must not be given away before this work is done.
            tensor.record_stream(self.stream)
        self._inside.__exit__(*error)
        self.caller.wait_stream(self.stream)
