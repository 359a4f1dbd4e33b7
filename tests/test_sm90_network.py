"""Whole networks whose kernels for sm_90a run in the emulator: one backend, as on a GPU, from its self-check on."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from emulated import COMPILER, NO_COMPILER, Emulated
from models import model_of

from srgan_fast import weights
from srgan_fast.backends import fused, selfcheck
from srgan_fast.backends.eager import EagerBackend
from srgan_fast.backends.fused import FusedBackend
from srgan_fast.kernels import hopper, parity
from srgan_fast.model import Generator, GeneratorConfig

pytestmark = [pytest.mark.beside, pytest.mark.skipif(COMPILER is None, reason=NO_COMPILER)]

CPU = torch.device("cpu")


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> weights.Model:
    monkeypatch.setattr(fused, "why_not_triton", lambda device: None)
    monkeypatch.setattr(selfcheck, "CHECK_SIZE", (9, 19))  # several tiles all the same, and seconds less
    return model_of(Generator(GeneratorConfig(blocks=1, width=64, prelu="channel")), tmp_path)


@pytest.mark.parametrize(
    "model",
    ["address", *(pytest.param(other, marks=pytest.mark.slow) for other in ("address-sbo1024", "row"))],
)
def test_a_network_by_kernels_for_sm90_equals_eager(network: weights.Model, model: str) -> None:
    with hopper.emulated(Emulated(processors=3, seed=1, model=model)):
        backend = FusedBackend(network, "cpu", "fp16")
        assert all(outcome.passed for outcome in backend.check)
        assert hopper.failures(CPU) == []
        lr = torch.randint(0, 256, (1, 9, 13, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        got, want = torch.empty(1, 36, 52, 3), torch.empty(1, 36, 52, 3)
        backend.run(lr / 255, got, 9)
        taken = hopper.choices(CPU)
        EagerBackend(network, "cpu", "fp32").run(lr / 255, want, 9)
    for op in ("head", "conv3x3", "conv3x3_shuffle", "tail"):
        assert any(what.startswith(f"{op} of") for what in taken)
    agreement = parity.agree(got, want, "fp16")
    assert agreement.passed, str(agreement)


@pytest.mark.slow
def test_a_wrong_kernel_is_replaced_and_the_picture_stays_right(
    network: weights.Model, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = {"conv3x3/sm90.cu": ("if (PRELU) v[e] = v[e] >= 0.f", "if (PRELU) v[e] = v[e] >= 0.5f")}
    with caplog.at_level(logging.WARNING), hopper.emulated(Emulated(processors=3, mutations=wrong)):
        backend = FusedBackend(network, "cpu", "fp16")
        assert all(outcome.passed for outcome in backend.check)
        assert hopper.failures(CPU)
    assert "disagrees with the reference" in caplog.text


@pytest.mark.slow
def test_what_its_own_check_cannot_see_the_networks_check_does(
    network: weights.Model, caplog: pytest.LogCaptureFixture
) -> None:
    # The order of tiles is the host's part: a kernel's own check runs forwards.
    order = "work.order.place(i,", "work.order.place(i + work.order.reversed,"
    runtime = Emulated(processors=3, mutations={"include/conv3x3.cuh": order})
    with caplog.at_level(logging.WARNING), hopper.emulated(runtime):
        backend = FusedBackend(network, "cpu", "fp16")
        assert all(outcome.passed for outcome in backend.check)
        (said,) = hopper.failures(CPU)
        launches = runtime.launches
        lr = torch.rand(1, 9, 13, 3)
        got, want = torch.empty(1, 36, 52, 3), torch.empty(1, 36, 52, 3)
        backend.run(lr, got, 9)
        EagerBackend(network, "cpu", "fp32").run(lr, want, 9)
    assert "disagrees with eager on this device (sm90" in said
    assert said in caplog.text
    assert runtime.launches == launches, "kernels of a network that was found wrong run again"
    assert parity.agree(got, want, "fp16").passed
