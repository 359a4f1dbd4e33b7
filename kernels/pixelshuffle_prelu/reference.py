"""pixelshuffle_prelu in plain PyTorch; autograd differentiates it."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def pixelshuffle_prelu(x: Tensor, slopes: Tensor, r: int = 2) -> Tensor:
    """See the package."""
    return F.prelu(F.pixel_shuffle(x.permute(0, 3, 1, 2), r), slopes.to(x.dtype)).permute(0, 2, 3, 1).contiguous()
