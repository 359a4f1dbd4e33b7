"""quantise_int8 in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

LEVELS = 127  # symmetric: -128 is never used


def quantise_int8(x: Tensor, inverse: float) -> Tensor:
    """See the package."""
    v = x.float() * torch.tensor(inverse, dtype=torch.float32, device=x.device)
    return torch.round(v).clamp(-LEVELS, LEVELS).to(torch.int8)
