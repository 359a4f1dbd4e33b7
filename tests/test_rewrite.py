"""Networks rewritten for inference are the same function, and how far a network looks is read off it rightly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from srgan_fast.model import (
    Generator,
    GeneratorConfig,
    MSRResNet,
    MSRResNetConfig,
    SRVGGNetCompact,
    receptive_radius,
)
from srgan_fast.rewrite import folded, in_place, unshuffled_weight, without_last_shuffle


def generator(**config: Any) -> Generator:
    """A small generator with the statistics and slopes of one that was trained."""
    torch.manual_seed(1)
    network = Generator(GeneratorConfig(**{"blocks": 2, "width": 8, **config})).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
            torch.nn.init.uniform_(module.weight, -1.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
        elif isinstance(module, torch.nn.PReLU):
            torch.nn.init.uniform_(module.weight, -0.5, 1.5)
    return network


CONFIGS: list[dict[str, Any]] = [
    {},
    {"norm": "none"},
    {"bias": True},
    {"separable": True},
    {"skip_end": "prelu"},
    {"prelu": "channel"},
]


@pytest.mark.parametrize("config", CONFIGS)
def test_folding_changes_rounding_only(config: dict[str, Any]) -> None:
    network = generator(**config).double()
    lr = torch.rand(1, 3, 8, 9, dtype=torch.float64)
    with torch.inference_mode():
        plain, fast = network(lr), folded(network)
        assert not [m for m in fast.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        assert (fast(lr) - plain).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("config", [*CONFIGS, {"norm": "instance", "skip_end": "prelu"}, {"kernel": 1}])
def test_activations_in_place_change_no_bit(config: dict[str, Any], dtype: torch.dtype) -> None:
    network = generator(**config).to(dtype)
    lr = torch.randn(2, 3, 8, 9, dtype=dtype).to(memory_format=torch.channels_last)
    lr[0, :, 0, 0], lr[0, :, 1, 1] = float("nan"), float("inf")
    seen = lr.clone()
    with torch.inference_mode():
        plain = without_last_shuffle(folded(network))
        fast = in_place(without_last_shuffle(folded(network)))
        want, got = plain(lr), fast(lr)
        shared = [m for m in fast.modules() if isinstance(m, torch.nn.PReLU)] == []
        assert shared == (config.get("prelu") != "channel")
        assert torch.equal(got.contiguous().view(torch.uint8), want.contiguous().view(torch.uint8))
        assert torch.equal(lr.contiguous().view(torch.uint8), seen.contiguous().view(torch.uint8))


@pytest.mark.parametrize(
    "config", [*CONFIGS, {"scale": 2}, {"scale": 8, "prelu": "channel"}, {"kernel": 3}, {"kernel": 5}, {"kernel": 1}]
)
@pytest.mark.parametrize("size", [(1, 1), (1, 6), (7, 5)])
def test_leaving_the_last_shuffle_out_changes_rounding_only(config: dict[str, Any], size: tuple[int, int]) -> None:
    network = generator(**config, activation="tanh").double()
    lr = torch.rand(2, 3, *size, dtype=torch.float64)
    with torch.inference_mode():
        fast = without_last_shuffle(folded(network))
        assert (fast(lr) - network(lr)).abs().max() < 1e-12
        if not config.get("separable"):
            assert isinstance(fast.output[0], torch.nn.Conv2d)
            stages = len(network.upsample) - 1  # the last shuffles 3 channels, not the network's width
            shuffles = [m for m in fast.upsample.modules() if isinstance(m, torch.nn.PixelShuffle)]
            assert len(shuffles) == stages
    assert receptive_radius(fast, tail_only=True) == receptive_radius(network, tail_only=True)


@settings(max_examples=40, deadline=None)
@given(r=st.integers(1, 4), reach=st.integers(0, 5), inputs=st.integers(1, 3), seed=st.integers(0, 99))
def test_unshuffled_weight_is_the_same_convolution(r: int, reach: int, inputs: int, seed: int) -> None:
    torch.manual_seed(seed)
    weight = torch.randn(2, inputs, 2 * reach + 1, 2 * reach + 1, dtype=torch.float64)
    maps = torch.randn(1, inputs * r * r, 4, 5, dtype=torch.float64)
    functional = torch.nn.functional
    want = functional.conv2d(functional.pixel_shuffle(maps, r), weight, padding=reach)
    small = unshuffled_weight(weight, r)
    got = functional.pixel_shuffle(functional.conv2d(maps, small, padding=small.shape[-1] // 2), r)
    assert (got - want).abs().max() < 1e-12


@pytest.mark.parametrize(
    "network", [SRVGGNetCompact(), MSRResNet(MSRResNetConfig(blocks=1)), generator(separable=True)]
)
def test_networks_with_another_end_stay_as_they_are(network: torch.nn.Module) -> None:
    before = repr(network)
    assert repr(without_last_shuffle(network)) == before


@pytest.mark.parametrize(("config", "radius"), [({"blocks": 16}, 40), ({"blocks": 2}, 12), ({"scale": 2}, 12)])
def test_the_radius_is_how_far_a_pixel_looks(config: dict[str, Any], radius: int) -> None:
    assert receptive_radius(generator(**config)) == radius


def test_nothing_beyond_the_radius_matters() -> None:
    network = generator(blocks=1).double()
    radius = receptive_radius(network)
    assert radius is not None
    size = 2 * radius + 9
    lr = torch.rand(1, 3, size, size, dtype=torch.float64, requires_grad=True)
    centre = size // 2
    network(lr)[..., 4 * centre : 4 * centre + 4, 4 * centre : 4 * centre + 4].sum().backward()
    assert lr.grad is not None
    touched = np.argwhere(lr.grad[0].abs().sum(0).numpy() > 0)
    assert np.abs(touched - centre).max() == radius
