"""A test of the self-check: a network by kernels that are broken on purpose is refused, a sound one is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from ahead_of_time import assumed
from mutations import MUTATIONS, Mutation, Plant, everywhere, identity, plant

from srgan_fast import kernels, weights
from srgan_fast.backends import fused, selfcheck
from srgan_fast.errors import BackendUnavailable
from srgan_fast.kernels.cases import Draw
from srgan_fast.model import CompactConfig, Generator, GeneratorConfig, SRVGGNetCompact

__all__ = ["plant"]

# What a network's picture cannot show: it has only kernels that write the values outside of a frame over memory which
# is written again before it is read. The guards around an op's own result show it.
NOT_IN_A_PICTURE = ("one row written outside of the frame",)
# Ops that no network in float16 has; for int8 see test_int8.py.
NOT_IN_A_NETWORK = (
    "pixelshuffle_prelu",
    "conv3x3_int8",
    "quantise_int8",
    "conv3x3_stats",
    "batchnorm_act",
    "training_crops",
)
IN_NETWORK = [each for each in MUTATIONS if each.op not in NOT_IN_A_NETWORK and each.name not in NOT_IN_A_PICTURE]
# Faults in what only the other network does, besides those of frame_input: a frame added to the picture, more inputs
# than one block, values above 1.
COMPACT = ("base of the next colour", "half of the inputs", "no clamp at one")


def saved(network: torch.nn.Module, folder: Path, **ranges: Any) -> weights.Model:
    """A model whose layers all matter to its picture, with slopes of every kind."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, torch.nn.PReLU):
            module.weight.data.copy_(Draw("cpu", torch.float32).slopes(module.num_parameters + 5)[5:])
        elif isinstance(module, torch.nn.Conv2d):
            torch.nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
    weights.save(folder / "network.safetensors", network, name="network", recipe={}, **ranges)
    return weights.load(folder / "network.safetensors")


@pytest.fixture
def network(tmp_path: Path) -> weights.Model:
    """SRResNet with all that its kernels can do: PReLU before a residual, tanh, another input range."""
    config = GeneratorConfig(blocks=1, width=16, norm="none", prelu="channel", skip_end="prelu", activation="tanh")
    return saved(Generator(config), tmp_path, input_range=(-1.0, 1.0))


@pytest.fixture
def compact(tmp_path: Path) -> weights.Model:
    """SRVGGNetCompact with more maps than a block of inputs."""
    return saved(SRVGGNetCompact(CompactConfig(blocks=1, width=80, scale=2)), tmp_path, input_range=(-0.5, 1.0))


@everywhere
@pytest.mark.parametrize("precision", ["fp16", pytest.param("fp32", marks=pytest.mark.slow)])
def test_the_whole_network_passes_its_self_check(
    device: str, precision: str, network: weights.Model, compact: weights.Model, small_check: None
) -> None:
    for model in (network, compact):
        for sm in (80, 90):
            with assumed(sm), mock.patch.object(fused, "why_not_triton", return_value=None):
                backend = fused.FusedBackend(model, device, precision)
            assert all(outcome.passed for outcome in backend.check)


# One of each kind always, the others with the long tests: each costs a run of the whole network.
ALWAYS = ("one tap dropped", "one row unwritten", "one wrong slope")


@everywhere
@pytest.mark.parametrize(
    "mutation",
    [
        pytest.param(each, id=identity(each), marks=() if each.name in ALWAYS else pytest.mark.slow)
        for each in IN_NETWORK
    ],
)
def test_the_self_check_refuses_a_broken_kernel(
    mutation: Mutation,
    device: str,
    plant: Plant,
    network: weights.Model,
    compact: weights.Model,
    small_check: None,
) -> None:
    if device == "cuda" and mutation.sm == 90 and kernels.architecture(torch.device(device)) not in (90, 100):
        pytest.skip("this GPU takes the pointer kernels")
    plant(mutation.op, mutation.old, mutation.new, mutation.shared)
    in_compact = mutation.op == "frame_input" or mutation.name in COMPACT
    with (
        assumed(mutation.sm),
        mock.patch.object(fused, "why_not_triton", return_value=None),
        pytest.raises(BackendUnavailable, match="disagrees with eager"),
    ):
        fused.FusedBackend(compact if in_compact else network, device, "fp16")


@pytest.fixture
def small_check(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame that the interpreter manages in a second: every tap meets it, and its larger maps cross tiles."""
    if device == "cpu":
        monkeypatch.setattr(selfcheck, "CHECK_SIZE", (6, 9))
