"""What an op is tested and timed with: named sets of arguments, made anew on any device in any dtype."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One set of arguments. `floor` replaces the parity rule's own, and `reason` says why it has to."""

    name: str
    make: Callable[[Draw], Arguments]
    floor: float | None = None
    reason: str = ""

    def inputs(self, device: str, dtype: torch.dtype, seed: int = 0) -> Arguments:
        """The keyword arguments of `run` and `reference`; the same numbers on every device."""
        return self.make(Draw(device, dtype, seed))


class Draw:
    """Random numbers of a fixed seed, drawn on the CPU so that every device gets the same."""

    def __init__(self, device: str, dtype: torch.dtype, seed: int = 0) -> None:
        self.device, self.dtype = device, dtype
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        """Normal numbers of mean 0 in the case's dtype, or another."""
        values = torch.randn(*shape, generator=self._generator) * scale
        return values.to(self.device, dtype or self.dtype)

    def whole(self, *shape: int) -> Tensor:
        """Quantised values, int8 over their whole range, extremes among them."""
        values = torch.randint(-127, 128, shape, generator=self._generator, dtype=torch.int32)
        flat = values.view(-1)
        flat[0], flat[-1] = -127, 127
        return values.to(torch.int8).to(self.device)

    def weight(self, taps: int, cin: int, cout: int) -> Tensor:
        """Packed weights that keep the scale of what they are applied to."""
        return self.normal(taps, cin, cout, scale=(taps * cin) ** -0.5)

    def vector(self, size: int, scale: float = 1.0) -> Tensor:
        """float32 biases and the like."""
        return self.normal(size, scale=scale, dtype=torch.float32)

    def slopes(self, size: int) -> Tensor:
        """PReLU slopes of every kind: usual, negative, zero, one, above one."""
        some = torch.tensor([0.25, -0.3, 0.0, 1.0, 1.7, 0.1, -1.2])
        return some.repeat(-(-size // len(some)))[:size].to(self.device)

    def pixels(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Integer pixels over their whole range, extremes among them."""
        top = 256 if dtype == torch.uint8 else 65536
        values = torch.randint(0, top, shape, generator=self._generator, dtype=torch.int32)
        flat = values.view(-1)
        flat[0], flat[-1] = 0, top - 1
        return values.to(dtype).to(self.device)


def in_double(arguments: Arguments) -> Arguments:
    """The same arguments for the truth: floats widened to float64, and so a dtype that is asked for as a result."""
    wide: Arguments = {}
    for name, value in arguments.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            value = value.double()
        elif isinstance(value, torch.dtype) and value.is_floating_point:
            value = torch.float64
        wide[name] = value
    return wide
