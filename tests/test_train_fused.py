"""The networks by the training kernels: what the plain modules give in training mode, gradients and statistics too."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from ahead_of_time import assumed
from torch import Tensor, nn

from srgan_fast.errors import ShapeError, UsageError
from srgan_fast.kernels import parity
from srgan_fast.model import CompactConfig, Discriminator, Generator, GeneratorConfig, SRVGGNetCompact
from srgan_fast.train import fused, losses
from srgan_fast.train.config import TrainConfig
from srgan_fast.train.step import EagerStep

CONFIGS = {
    "the paper's": GeneratorConfig(),
    "channel": GeneratorConfig(prelu="channel", scale=2, activation="tanh"),
    "bias": GeneratorConfig(bias=True, scale=8),
    "prelu at the end": GeneratorConfig(skip_end="prelu", kernel=3),
    "nothing at the end": GeneratorConfig(skip_end="none"),
    "no norm": GeneratorConfig(norm="none", prelu="channel"),
    "no norm, prelu at the end": GeneratorConfig(norm="none", skip_end="prelu"),
}


def generator(config: GeneratorConfig, blocks: int = 2, width: int = 8) -> Generator:
    return prepared(Generator(dataclasses.replace(config, blocks=blocks, width=width)))


def prepared(network: Any) -> Any:
    """As a step has it, in the middle of training: gains, slopes and running statistics of their own."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.PReLU):
            nn.init.uniform_(module.weight, -0.3, 1.2, generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.3
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            for vector in (module.bias, module.running_mean):
                nn.init.uniform_(vector, -0.5, 0.5, generator=generator)
    return network.to(memory_format=torch.channels_last).train()


def results(network: Any, forward: Callable[[Tensor], Tensor], image: Tensor) -> dict[str, Tensor]:
    """Output, gradients of image and parameters, and every buffer afterwards, by name."""
    image = image.clone().requires_grad_()
    out = forward(image)
    pull = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(out)
    names, parameters = zip(*network.named_parameters(), strict=True)
    gradients = torch.autograd.grad(out, (image, *parameters), pull)
    found = {"output": out.detach(), **dict(zip(("image", *names), gradients, strict=True))}
    return found | {name: buffer.clone() for name, buffer in network.named_buffers()}


def both(network: nn.Module, image: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """By the plain module, and by the kernels."""
    other: Any = copy.deepcopy(network)
    return results(network, network, image), results(other, fused.forward_of(other), image)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_generator_is_the_plain_one(config: GeneratorConfig) -> None:
    plain, fast = both(generator(config).double(), torch.rand(2, 3, 5, 6).double())
    torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("size", [96, 40])
def test_a_discriminator_is_the_plain_one(size: int) -> None:
    """Of 96 pixels the maps are left as they are, others are averaged; wide layers are PyTorch's."""
    network = prepared(Discriminator(width=4)).double()
    plain, fast = both(network, 2 * torch.rand(2, 3, size, size).double() - 1)
    torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-10)


def test_wide_layers_have_their_statistics_from_a_kernel_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_MOST_INPUTS", 8)
    plain, fast = both(prepared(Discriminator(width=4)).double(), torch.rand(2, 3, 32, 32).double())
    torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-10)


def test_float32_is_as_near_as_the_plain_module() -> None:
    for network, image in (
        (generator(GeneratorConfig()), torch.rand(2, 3, 7, 6)),
        (prepared(Discriminator(width=4)), torch.rand(2, 3, 48, 48)),
    ):
        check_against_truth(network, image, times=2.0)


def check_against_truth(network: nn.Module, image: Tensor, times: float) -> None:
    """Outputs, gradients and statistics err as those of the plain module do, both held to float64."""
    wide = copy.deepcopy(network).double()
    truth = results(wide, wide, image.double())
    plain, fast = both(network, image)
    for name, exact in truth.items():
        if not exact.is_floating_point():
            assert torch.equal(fast[name], exact), name
            continue
        errors = [float((value.double() - exact).abs().max()) for value in (fast[name], plain[name])]
        allowed = times * errors[1] + 8 * torch.finfo(torch.float32).eps * float(exact.abs().max())
        assert errors[0] <= allowed, f"{name}: {errors[0]:.2e}, allowed {allowed:.2e}"
        assert parity.compare(fast[name], plain[name], exact, torch.float32, floor=allowed).rms_error < 1e-4, name


@pytest.mark.interpreter
def test_a_generator_by_the_kernels_themselves() -> None:
    with assumed(80, 8):
        check_against_truth(generator(GeneratorConfig(), blocks=1, width=16), torch.rand(2, 3, 6, 5), times=4.0)


@pytest.mark.interpreter
@pytest.mark.slow
@pytest.mark.parametrize("config", [CONFIGS["channel"], CONFIGS["no norm, prelu at the end"]], ids=["channel", "none"])
def test_other_generators_by_the_kernels_themselves(config: GeneratorConfig) -> None:
    with assumed(90, 8):
        check_against_truth(generator(config, blocks=1, width=16), torch.rand(2, 3, 6, 5), times=4.0)


@pytest.mark.interpreter
def test_a_discriminator_by_the_kernels_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_MOST_INPUTS", 8)
    with assumed(80, 8):
        check_against_truth(prepared(Discriminator(width=4)), torch.rand(2, 3, 32, 32), times=4.0)


def relative_errors(name: str, exact: Tensor, *found: dict[str, Tensor]) -> list[float]:
    exact = exact.double()
    return [float((each[name].double() - exact).norm() / exact.norm().clamp_min(1e-9)) for each in found]


def test_under_autocast_the_error_is_that_of_the_plain_module() -> None:
    """bfloat16 maps with float32 statistics; seven normalisations in a row make the errors of both large."""
    network = prepared(Discriminator(width=8))
    image = torch.rand(4, 3, 48, 48)
    wide = copy.deepcopy(network).double()
    truth = results(wide, wide, image.double())
    with torch.autocast("cpu", torch.bfloat16):
        plain, fast = both(network, image)
    assert fast["output"].dtype == plain["output"].dtype == torch.bfloat16
    errors = {name: relative_errors(name, exact, fast, plain) for name, exact in truth.items()}
    # One tensor's error is luck: a sign that flips in one of them need not in the other.
    assert sum(mine for mine, _ in errors.values()) <= 1.25 * sum(theirs for _, theirs in errors.values()), errors
    assert all(mine <= 3 * theirs + 0.02 for mine, theirs in errors.values()), errors
    assert fast["features.3.running_mean"].dtype == torch.float32


@pytest.mark.parametrize("kernels", [False, True])
def test_the_generators_loss_asks_for_no_gradient_of_the_discriminator(kernels: bool) -> None:
    config = TrainConfig(generator=GeneratorConfig(blocks=1, width=4), precision="fp32", steps=5)
    judge = prepared(Discriminator(width=4))
    step = EagerStep(generator(GeneratorConfig(), blocks=1), losses.mse, config, judge, kernels=kernels)
    sr = (2 * torch.rand(2, 3, 32, 32) - 1).requires_grad_()
    adversarial = step.generator_terms(sr, torch.zeros_like(sr))["adversarial"]
    weights = list(judge.parameters())
    assert all(weight.requires_grad for weight in weights)
    with_sr, *others = torch.autograd.grad(adversarial, [sr, *weights], allow_unused=True)
    assert with_sr.abs().max() > 0
    assert all(gradient is None for gradient in others)


def check_steps(precision: str, steps: int, size: int = 32) -> None:
    """Steps of both networks as training makes them, with kernels and without."""
    config = TrainConfig(generator=GeneratorConfig(blocks=1, width=8), precision=precision, steps=steps, clip=1.0)
    torch.manual_seed(3)
    lr, hr = torch.rand(2, 3, size // 4, size // 4), 2 * torch.rand(2, 3, size, size) - 1
    losses_of = []
    for kernels in (False, True):
        torch.manual_seed(0)
        networks = generator(GeneratorConfig(), blocks=1), prepared(Discriminator(width=4))
        step = EagerStep(networks[0], losses.mse, config, networks[1], kernels=kernels)
        losses_of.append([step(lr, hr, number) for number in range(config.steps)])
    tolerance = {"rtol": 2e-3, "atol": 1e-4} if precision == "fp32" else {"rtol": 0.1, "atol": 0.05}
    for plain, fast in zip(*losses_of, strict=True):
        for name in ("content", "adversarial", "discriminator", "d_real", "d_fake"):
            torch.testing.assert_close(fast[name], plain[name], **tolerance, msg=name)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_steps_with_and_without_kernels_have_the_same_losses(precision: str) -> None:
    check_steps(precision, 5)


@pytest.mark.slow
@pytest.mark.interpreter
def test_steps_with_the_kernels_themselves_have_the_same_losses() -> None:
    with assumed(80, 8):
        check_steps("fp32", 2, size=16)


# ---- what has no such form


def test_what_has_no_training_kernels_says_why() -> None:
    def with_norm(change: Callable[[nn.BatchNorm2d], object]) -> Discriminator:
        network = Discriminator(width=2)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                change(module)
        return network

    refused = {
        "not for SRVGGNetCompact": SRVGGNetCompact(CompactConfig(blocks=1, width=4)),
        "separable convolutions": Generator(GeneratorConfig(blocks=1, width=4, separable=True)),
        "normalisation 'instance'": Generator(GeneratorConfig(blocks=1, width=4, norm="instance")),
        "normalisation 'instance-affine'": Generator(GeneratorConfig(blocks=1, width=4, norm="instance-affine")),
        "synchronised batch normalisation": nn.SyncBatchNorm.convert_sync_batchnorm(Discriminator(width=2)),
        "with momentum": with_norm(lambda norm: setattr(norm, "momentum", None)),
        "gain and running statistics": with_norm(lambda norm: setattr(norm, "track_running_stats", False)),
        "in float32, not torch.bfloat16": Discriminator(width=2).bfloat16(),
    }
    for reason, network in refused.items():
        assert reason in (fused.why_not(network) or ""), reason
        with pytest.raises(UsageError, match="train it with --kernels off"):
            fused.forward_of(network)  # type: ignore[arg-type]
    for config in CONFIGS.values():
        assert fused.why_not(generator(config, 1, 4)) is None
    assert fused.why_not(Discriminator(width=2)) is None


def test_one_value_a_channel_has_no_variance() -> None:
    forward = fused.forward_of(generator(GeneratorConfig()))
    with pytest.raises(ShapeError, match="more than one value a channel, got 1; take a larger crop"):
        forward(torch.rand(1, 3, 1, 1))


def test_statistics_are_left_alone_when_a_pass_fails() -> None:
    network = prepared(Discriminator(width=4))
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    with pytest.raises(ShapeError):
        # The fourth stride leaves one value.
        fused.forward_of(network)(torch.rand(1, 3, 8, 8))
    torch.testing.assert_close(dict(network.named_buffers()), before, rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_networks_on_a_gpu(precision: str) -> None:
    """By the kernels as they run there; in bfloat16 no worse than the plain module."""
    for network, image in (
        (generator(GeneratorConfig(), width=64), torch.rand(4, 3, 24, 24)),
        (prepared(Discriminator(width=16)), torch.rand(4, 3, 96, 96)),
    ):
        wide = copy.deepcopy(network).double().cuda()
        truth = results(wide, wide, image.double().cuda())
        with parity.exact_float32("cuda"), torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
            plain, fast = both(network.cuda(), image.cuda())
        floor = 0.05 if precision == "bf16" else 1e-4
        for name, exact in truth.items():
            mine, theirs = relative_errors(name, exact, fast, plain)
            assert mine <= 2 * theirs + floor, f"{name}: {mine}, {theirs}"
