"""Models for tests: networks of random weights, as a file has them."""

from __future__ import annotations

from pathlib import Path

import torch

from srgan_fast import weights


def model_of(network: torch.nn.Module, folder: Path) -> weights.Model:
    """A model with slopes and statistics as training leaves them."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
        elif isinstance(module, torch.nn.PReLU):
            torch.nn.init.uniform_(module.weight, -0.5, 1.2)
    weights.save(folder / "network.safetensors", network, name="network", recipe={})
    return weights.load(folder / "network.safetensors")
