"""A model as its peers get it: one module from frames to pixels, in the arithmetic that every backend here keeps."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from srgan_fast.community import bounds
from srgan_fast.weights import Model


class Pixels(nn.Module):
    """uint8 frames [n, h, w, 3] -> uint8 frames, the network between them in `dtype`, the pixels in float32."""

    in_low: Tensor
    in_span: Tensor
    out_low: Tensor
    out_span: Tensor

    def __init__(self, network: nn.Module, model: Model, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.network, self.dtype = network, dtype
        for name, colours in (("in", model.info.input_range), ("out", model.info.output_range)):
            low, high = bounds(colours)
            self.register_buffer(f"{name}_low", low)
            self.register_buffer(f"{name}_span", high - low)

    def forward(self, frames: Tensor) -> Tensor:
        """The larger frames, scale times as high and wide."""
        lr = frames.permute(0, 3, 1, 2).float() / 255 * self.in_span + self.in_low
        hr = self.network(lr.to(self.dtype)).float()
        pixels = ((hr - self.out_low) / self.out_span * 255).clamp(0, 255).add(0.5).floor()
        return pixels.to(torch.uint8).permute(0, 2, 3, 1)


def pixels_of(model: Model, dtype: torch.dtype = torch.float32) -> Pixels:
    """A copy of a model's network as such a module, on the CPU."""
    network: Any = copy.deepcopy(model.network).to(dtype)
    return Pixels(network, model, dtype).eval().requires_grad_(False)
