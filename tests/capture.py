"""A CUDA graph on the CPU: records the tensor operations of a call, and runs them again over the same memory.

As with a real graph, nothing of Python is run in a replay: numbers of the host are what they were at the capture, every
tensor keeps its address, and a value read back to the host ends the capture. What was allocated in the capture is full
of NaN when a replay begins.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Work = Callable[[], object]


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _addresses(value: Any) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in _tensors(value)}


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]] = []
        self.own: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket is torch.ops.aten._local_scalar_dense:
            raise RuntimeError("a value was read back to the host")
        out = func(*args, **kwargs)
        outs = _tensors(out)
        inside = _addresses((args, kwargs))
        new = [one for one in outs if one.untyped_storage().data_ptr() not in inside]
        self.own += [one for one in new if one.is_floating_point()]
        # A view sees what its base has by then; what is written in place has no new tensor.
        if new or func._schema.is_mutable:
            self.calls.append((func, args, kwargs, outs))
        return out


class Recorded:
    """Stands in for `graph.capture`; counts captures and replays."""

    def __init__(self) -> None:
        self.captures = self.replays = 0

    def __call__(self, work: Work, device: torch.device, stream: object) -> Work:
        self.captures += 1
        for _ in range(2):
            work()
        recorder = _Recorder()
        with recorder:
            work()

        @torch.no_grad()
        def replay() -> None:
            self.replays += 1
            for tensor in recorder.own:
                tensor.fill_(math.nan)
            for func, args, kwargs, outs in recorder.calls:
                for kept, new in zip(outs, _tensors(func(*args, **kwargs)), strict=True):
                    if new.data_ptr() != kept.data_ptr():
                        kept.copy_(new)

        return replay


class Repeated(Recorded):
    """The plainest executor: a replay calls the captured work again."""

    def __call__(self, work: Work, device: torch.device, stream: object) -> Work:
        self.captures += 1
        for _ in range(2):
            work()

        def replay() -> None:
            self.replays += 1
            work()

        return replay
