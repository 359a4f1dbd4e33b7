"""The kernels for training: gradients by finite differences, by closed form and by autograd; how work is cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ahead_of_time import assumed
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kernels import half_everywhere, op_cases
from torch import Tensor
from torch.nn import functional as F

from srgan_fast import kernels
from srgan_fast.kernels import batchnorm_act as norm
from srgan_fast.kernels import conv3x3_stats as conv
from srgan_fast.kernels.cases import Case, in_double
from srgan_fast.kernels.launch import SHARED_LIMIT_KIB, nearest_architecture

Gradients = tuple[Tensor, ...]


def doubles(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def plain(arguments: dict[str, Any]) -> Tensor:
    """Batch normalisation as PyTorch has it in training mode, and what follows."""
    x = arguments["x"].permute(0, 3, 1, 2)
    y = F.batch_norm(x, None, None, arguments["gamma"], arguments["beta"], training=True)
    slopes = arguments.get("slopes")
    y = F.leaky_relu(y, arguments.get("slope", 1.0)) if slopes is None else F.prelu(y, slopes)
    y = y.permute(0, 2, 3, 1)
    return y if arguments.get("skip") is None else y + arguments["skip"]


@pytest.mark.parametrize(("op", "case"), op_cases("batchnorm_act")[1:])
def test_the_operator_has_the_gradients_of_batch_normalisation(op: str, case: Case) -> None:
    """All of them, with the terms through mean and variance, against autograd of the plain formula in float64."""
    arguments = in_double(case.inputs("cpu", torch.float32))
    leaves = {
        name: value.detach().requires_grad_()
        for name, value in arguments.items()
        if isinstance(value, Tensor) and name not in ("mean", "variance")
    }
    wanted_y = plain(arguments | leaves)
    mean, variance = norm.channel_statistics(leaves["x"].detach())
    got_y = norm.batchnorm_act(**arguments | leaves | {"mean": mean, "variance": variance})
    torch.testing.assert_close(got_y, wanted_y, rtol=1e-9, atol=1e-9)
    dy = doubles(*got_y.shape, seed=1).detach()
    wanted, got = (torch.autograd.grad(y, list(leaves.values()), dy) for y in (wanted_y, got_y))
    for name, one, other in zip(leaves, got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8, msg=name)


@pytest.mark.parametrize("act", ["channel", "shared", "constant", "none"])
def test_gradcheck_of_batchnorm_act(act: str) -> None:
    """Finite differences see the statistics move with x, and the closed form has to account for it."""
    x, skip = doubles(2, 3, 2, 3), doubles(2, 3, 2, 3, seed=1)
    gamma, beta = doubles(3, seed=2), doubles(3, seed=3)
    slopes = {"channel": doubles(3, seed=4), "shared": doubles(1, seed=4)}.get(act)

    def call(x: Tensor, gamma: Tensor, beta: Tensor, skip: Tensor, *slopes: Tensor) -> Tensor:
        mean, variance = norm.channel_statistics(x.detach())
        slope = 0.2 if act == "constant" else 1.0
        return norm.batchnorm_act(x, mean, variance, gamma, beta, *(slopes or [None]), skip, slope)

    assert torch.autograd.gradcheck(call, (x, gamma, beta, skip, *([] if slopes is None else [slopes])))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("biased", [False, True])
def test_gradcheck_of_conv3x3_stats(stride: int, biased: bool) -> None:
    x, weight, bias = doubles(2, 3, 4, 2), doubles(3, 3, 3, 2, seed=1), doubles(3, seed=2)

    def call(x: Tensor, weight: Tensor, *bias: Tensor) -> Tensor:
        return conv.conv3x3_stats(x, weight, *(bias or [None]), stride)[0]

    assert torch.autograd.gradcheck(call, (x, weight, bias) if biased else (x, weight))


def test_gradcheck_of_a_convolution_and_its_normalisation() -> None:
    """The pair as the networks use it: all that the statistics change reaches the convolution through y."""
    x, weight, gamma, beta = doubles(2, 3, 3, 2), doubles(3, 3, 3, 2, seed=1), doubles(3, seed=2), doubles(3, seed=3)

    def call(x: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        y, mean, variance = conv.conv3x3_stats(x, weight)
        return norm.batchnorm_act(y, mean, variance, gamma, beta, slope=0.2)

    assert torch.autograd.gradcheck(call, (x, weight, gamma, beta))


def test_statistics_are_constants_to_autograd() -> None:
    y, mean, variance = conv.conv3x3_stats(doubles(1, 3, 3, 2), doubles(4, 3, 3, 2, seed=1))
    assert y.requires_grad
    assert not mean.requires_grad
    assert not variance.requires_grad


def test_a_convolution_computes_the_gradients_that_are_asked_for() -> None:
    """A network that is only passed through has weights without gradients."""
    x, weight = doubles(1, 3, 3, 2), doubles(4, 3, 3, 2, seed=1)
    for x_, weight_ in ((x, weight.detach()), (x.detach(), weight)):
        conv.conv3x3_stats(x_, weight_)[0].sum().backward()
    both = torch.autograd.grad(conv.conv3x3_stats(x, weight)[0].sum(), (x, weight))
    assert x.grad is not None
    assert weight.grad is not None
    assert torch.equal(x.grad, both[0])
    assert torch.equal(weight.grad, both[1])


@half_everywhere
def test_gradients_flow_through_the_operators(device: str) -> None:
    """By the kernels, and each gradient at its place."""
    case = conv.CASES[3].inputs(device, torch.float32)
    x, weight, bias = (case[name].requires_grad_() for name in ("x", "weight", "bias"))
    given = {name: torch.rand(36, device=device).add(0.5).requires_grad_() for name in ("gamma", "beta", "slopes")}
    with assumed(80) if device == "cpu" else assumed(kernels.architecture(torch.device(device))):
        y, mean, variance = conv.conv3x3_stats(x, weight, bias, 2)
        skip = torch.randn_like(y).requires_grad_()
        z = norm.batchnorm_act(y, mean, variance, skip=skip, **given)
        leaves = [x, weight, bias, *given.values(), skip]
        got = torch.autograd.grad(z.square().sum(), leaves)
    maps = F.conv2d(x.permute(0, 3, 1, 2), weight.permute(0, 3, 1, 2), bias, stride=2, padding=1)
    wanted = torch.autograd.grad(plain({"x": maps.permute(0, 2, 3, 1), "skip": skip, **given}).square().sum(), leaves)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


@half_everywhere
def test_sums_have_one_order(device: str) -> None:
    given = norm.CASES[1].inputs(device, torch.float32)
    dy = torch.randn(given["x"].shape, generator=torch.Generator().manual_seed(2)).to(device)
    given.pop("skip")
    with assumed(80, 1000):
        first, second = ((*norm.backward(**given, dy=dy), *norm.statistics(given["x"])) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


@half_everywhere
def test_gradients_at_zero_are_those_of_pytorch(device: str) -> None:
    """A value that normalises to exactly 0 is a negative one: its gradient has the slope, and the slope's is 0."""
    x, one, zero = (
        torch.zeros(1, 2, 2, 16, device=device),
        torch.ones(16, device=device),
        torch.zeros(16, device=device),
    )
    dy = torch.arange(4.0, device=device).view(1, 2, 2, 1).expand(1, 2, 2, 16).contiguous()
    with assumed(80):
        dx, sums = norm.backward(x, zero, one, one, zero, dy, 0.25 * one)
    torch.testing.assert_close(sums, torch.tensor([1.5, 0.0, 0.0], device=device)[:, None].expand(3, 16))
    torch.testing.assert_close(dx[0, :, :, 0].flatten(), 0.25 * torch.tensor([-1.5, -0.5, 0.5, 1.5], device=device))


# ---- the cut


@settings(max_examples=300, deadline=None)
@given(
    sm=st.sampled_from([*SHARED_LIMIT_KIB, 87, 103]),
    processors=st.integers(1, 200),
    pixels=st.integers(1, 2**31 - 1),
    cin=st.integers(1, 600),
    cout=st.integers(1, 600),
    itemsize=st.sampled_from([2, 4]),
)
def test_cuts_fit_every_shape(sm: int, processors: int, pixels: int, cin: int, cout: int, itemsize: int) -> None:
    cut = conv.choose(processors, pixels, cin, cout, itemsize, nearest_architecture(sm))
    assert all(value & (value - 1) == 0 for name, value in cut.items() if name != "num_stages")
    assert cut["BP"] in (64, 128)
    assert 16 <= cut["BN"] < 2 * max(cout, 16)
    assert 16 <= cut["BK"] < 2 * max(cin, 16)
    assert cut["num_warps"] in (4, 8)
    shared = cut["num_stages"] * (cut["BP"] + cut["BN"]) * cut["BK"] * itemsize
    assert shared <= (SHARED_LIMIT_KIB[nearest_architecture(sm)] - 1) * 1024
    (across, _), cut = norm.choose(processors, pixels, cout, itemsize)
    assert across == -(-pixels // cut["BP"])
    assert 8 <= cut["BP"] <= 64
    assert cut["BC"] < 2 * cout


@pytest.mark.parametrize("frames", [8, 16, 32])
def test_a_batch_of_crops_keeps_an_h100_busy(frames: int) -> None:
    """24x24 maps of 64 channels are few pixels for 132 multiprocessors."""
    pixels = frames * 24 * 24
    cut = conv.choose(132, pixels, 64, 64, 2)
    assert -(-pixels // cut["BP"]) * (64 // cut["BN"]) >= 132
    (across, blocks), _ = norm.choose(132, pixels, 64, 2)
    assert across * blocks >= 2 * 132


def test_large_batches_get_large_blocks() -> None:
    cut = conv.choose(132, 16 * 96 * 96, 64, 64, 2)
    assert (cut["BP"], cut["BN"], cut["num_warps"]) == (128, 64, 8)
    assert norm.choose(132, 16 * 96 * 96, 64, 2)[1]["BP"] == 64
