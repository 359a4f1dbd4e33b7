"""pixelshuffle_prelu in plain PyTorch, and its gradients in closed form: no autograd runs inside an operator."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def pixelshuffle_prelu(x: Tensor, slopes: Tensor, r: int = 2) -> Tensor:
    """See the package."""
    return F.prelu(F.pixel_shuffle(x.permute(0, 3, 1, 2), r), slopes.to(x.dtype)).permute(0, 2, 3, 1).contiguous()


def pixelshuffle_prelu_backward(x: Tensor, slopes: Tensor, dy: Tensor, r: int = 2) -> tuple[Tensor, Tensor]:
    """See the package; what autograd makes of the function above."""
    y, dy = F.pixel_shuffle(x.permute(0, 3, 1, 2), r), dy.permute(0, 3, 1, 2)
    dx = torch.where(y > 0, dy, dy * slopes.to(dy.dtype)[:, None, None])
    wide = torch.promote_types(dy.dtype, torch.float32)
    dslopes = (dy.to(wide) * y.to(wide).clamp_max(0)).sum((0, 2, 3))
    return F.pixel_unshuffle(dx, r).permute(0, 2, 3, 1).contiguous(), dslopes.to(slopes.dtype)
