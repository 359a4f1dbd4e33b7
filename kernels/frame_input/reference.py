"""frame_input in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def frame_input(frames: Tensor, gain: Tensor, offset: Tensor, dtype: torch.dtype) -> Tensor:
    """See the package."""
    wide = torch.float64 if torch.float64 in (dtype, gain.dtype) else torch.float32
    # uint16 has no arithmetic of its own.
    x = frames.to(torch.int32).to(wide) if frames.dtype == torch.uint16 else frames.to(wide)
    x = torch.addcmul(offset.to(wide), x, gain.to(wide))
    return torch.nn.functional.pad(x, (0, 1)).to(dtype)
