"""The parts of a training step: its schedule, its average, its terms, its moments, its optimiser."""

from __future__ import annotations

import copy
import dataclasses
import math
import types
from typing import Any

import pytest
import torch
from steps import GAN, TINY, assert_same, batch, everything, networks, run, step_of
from torch import Tensor

from srgan_fast.errors import UsageError
from srgan_fast.train import losses
from srgan_fast.train.graph_step import GraphStep
from srgan_fast.train.step import EagerStep, average_weight, bf16_pays, learning_rate, schedule

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("warmup", [0, 10])
@pytest.mark.parametrize("decay", ["none", "drop", "cosine"])
def test_the_table_is_the_definition(decay: Any, warmup: int) -> None:
    config = dataclasses.replace(TINY, steps=1000, decay=decay, warmup=warmup)
    table = schedule(config)
    assert table.shape == (1000, 2)
    for step in range(1000):
        want = torch.tensor([learning_rate(config, step), average_weight(config, step)])
        assert torch.equal(table[step], want)
    generator, _ = networks(config)
    step = EagerStep(generator, losses.mse, config)
    for number in (0, 9, 10, 499, 500, 999):
        step(*batch(0), number)
        assert step.optimisers["generator"].param_groups[0]["lr"] == table[number, 0]


def test_the_average_follows() -> None:
    step = step_of(EagerStep, TINY)
    for number in (0, 50):
        before = [parameter.clone() for parameter in step.average.parameters()]
        step(*batch(number), number)
        decay = min(TINY.ema, (1 + number) / (10 + number))
        for was, now, new in zip(before, step.average.parameters(), step.generator.parameters(), strict=True):
            assert torch.allclose(now, decay * was + (1 - decay) * new, atol=1e-7)
        for now, new in zip(step.average.buffers(), step.generator.buffers(), strict=True):
            assert torch.equal(now, new)


@pytest.mark.parametrize("step", [-1, 60])
def test_a_step_that_the_run_does_not_have(step: int) -> None:
    with pytest.raises(UsageError, match=r"0\.\.59"):
        step_of(EagerStep, TINY)(*batch(0), step)


def test_auto_precision_depends_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for capability, pays in (((7, 5), False), ((8, 0), True), ((12, 0), True)):
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda _, found=capability: found)
        assert bf16_pays("auto", cuda) == pays
    assert bf16_pays("auto", cpu) == torch.cpu._is_amx_tile_supported()
    for device in (cpu, cuda):
        assert bf16_pays("bf16", device)
        assert not bf16_pays("fp32", device)


def test_the_terms_are_those_of_the_paper() -> None:
    config = dataclasses.replace(GAN, adversarial_weight=0.5)
    step = step_of(EagerStep, config)
    generator, discriminator = copy.deepcopy((step.generator, step.discriminator))
    lr, hr = batch(0)
    terms = step(lr, hr, 0)
    sr = generator(lr)
    real, fake = discriminator(hr), discriminator(sr.detach())
    loss = losses.discriminator(real, fake)
    gradient = torch.autograd.grad(loss, list(discriminator.parameters()))
    want = {
        "content": losses.mse(sr, hr),
        "discriminator": loss,
        "d_real": discriminator.probability(hr).mean(),
        "d_fake": discriminator.probability(sr).mean(),
        "discriminator_norm": torch.stack([g.square().sum() for g in gradient]).sum().sqrt(),
    }
    # By the discriminator as it is after its update.
    adversarial = losses.adversarial(step.discriminator(sr))
    total = want["content"] + 0.5 * adversarial
    gradient = torch.autograd.grad(total, list(generator.parameters()))
    want |= {
        "adversarial": adversarial,
        "generator_norm": torch.stack([g.square().sum() for g in gradient]).sum().sqrt(),
    }
    assert terms.keys() == want.keys()
    for name, value in want.items():
        assert math.isclose(float(terms[name]), float(value.detach()), rel_tol=1e-4), name
        assert not terms[name].requires_grad
    clipped = torch.stack([p.grad.square().sum() for p in step.generator.parameters()]).sum().sqrt()
    assert float(terms["generator_norm"]) > config.clip
    assert math.isclose(float(clipped), config.clip, rel_tol=1e-3)


def test_the_terms_of_the_first_stage() -> None:
    assert list(step_of(EagerStep, TINY)(*batch(0), 0)) == ["content", "generator_norm"]


def test_moments_are_there_from_the_start_and_stay_where_they_are() -> None:
    step, other = step_of(EagerStep, GAN), step_of(EagerStep, GAN)
    fresh = copy.deepcopy(step.state())
    for moments in fresh["optimisers"].values():
        for one in moments["state"].values():
            assert one.keys() == {"step", "exp_avg", "exp_avg_sq"}
            assert not any(value.any() for value in one.values())
    where = [tensor.data_ptr() for tensor in GraphStep._tensors(step)]
    run(step, range(5))
    later = copy.deepcopy(step.state())
    torch.rand(3)
    step.restore(later)
    assert_same(step, [everything_of(later)])
    other.restore(later)
    assert_same(run(step, range(5, 8)), run(other, range(5, 8)))
    step.restore(fresh)
    assert_same(step, [everything_of(fresh)])
    assert where == [tensor.data_ptr() for tensor in GraphStep._tensors(step)]


def everything_of(state: dict[str, Any]) -> dict[str, Tensor]:
    return everything(types.SimpleNamespace(state=lambda: state))  # type: ignore[arg-type]


def test_the_random_state_of_every_device_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    step = step_of(EagerStep, TINY)
    put: dict[int, Tensor] = {}
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [torch.tensor([1]), torch.tensor([2])])
    state = copy.deepcopy(step.state())
    assert [int(one) for one in state["random"]["cuda"]] == [1, 2]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # one GPU fewer than there were
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda value, index: put.update({index: value}))
    drawn = torch.rand(2)
    step.restore(state)
    assert list(put) == [0]
    assert int(put[0]) == 1
    assert torch.equal(torch.rand(2), drawn)
