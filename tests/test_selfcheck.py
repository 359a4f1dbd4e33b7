"""The check that backends pass before their first frame: what it lets through, and what it must not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models import model_of
from torch import Tensor

from srgan_fast import weights
from srgan_fast.backends import selfcheck
from srgan_fast.backends.eager import EagerBackend
from srgan_fast.errors import BackendUnavailable
from srgan_fast.kernels.parity import GATES
from srgan_fast.model import Generator, GeneratorConfig


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> weights.Model:
    folder: Path = tmp_path_factory.mktemp("model")
    return model_of(Generator(GeneratorConfig(scale=2, blocks=1, width=8)), folder)


class Other(EagerBackend):
    """Eager under another name, whose pictures `change` alters before they are written."""

    name = "other"

    def __init__(self, model: weights.Model, change: Callable[[Tensor], Tensor], precision: str = "fp32") -> None:
        super().__init__(model, "cpu", "fp32")
        self.precision, self.change = precision, change

    def run(self, frames: Tensor, out: Tensor, band: int) -> None:
        floats = frames if frames.is_floating_point() else frames.float() / 255
        right = torch.empty(out.shape)
        super().run(floats, right, band)
        out.copy_(self.change(right) if out.is_floating_point() else self.pixels(self.change(right)))

    def pixels(self, values: Tensor) -> Tensor:
        return (values.clamp(0, 1) * 255 + 0.5).floor().to(torch.uint8)


class Cuts(Other):
    """Cuts decimals off where it should round."""

    def pixels(self, values: Tensor) -> Tensor:
        return (values.clamp(0, 1) * 255).to(torch.uint8)


def _noise(precision: str) -> Callable[[Tensor], Tensor]:
    """As far off as the gate of a precision allows: never the same way twice, as of two graphs of one network."""
    seeds = iter(range(100))

    def change(values: Tensor) -> Tensor:
        gate = GATES[precision]
        random = torch.Generator().manual_seed(next(seeds))
        largest = min(gate.max_error, 10 ** (-gate.psnr_db / 20))
        return values + largest * (2 * torch.rand(values.shape, generator=random) - 1)

    return change


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_errors_within_the_gate_pass_and_cut_decimals_do_not(model: weights.Model, precision: str) -> None:
    assert selfcheck.hold(Other(model, _noise(precision), precision), model).passed
    with pytest.raises(BackendUnavailable, match=r"uint8 pixels are not its floats rounded.* -0\.[45]\d on average"):
        selfcheck.hold(Cuts(model, _noise(precision), precision), model)


def _nothing_in_last_row(values: Tensor) -> Tensor:
    return torch.cat([values[:, :-1], torch.full_like(values[:, -1:], float("nan"))], 1)


FAULTS: dict[str, Any] = {
    "a row unwritten": _nothing_in_last_row,
    "frames swapped": lambda values: values.flip(0),
    "red for blue": lambda values: values.flip(-1),
    "a column late": lambda values: values.roll(1, 2),
    "unclamped": lambda values: values * 1.01,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_refused_in_the_loosest_precision(model: weights.Model, fault: str) -> None:
    broken = Other(model, FAULTS[fault], "fp32" if fault == "unclamped" else "bf16")
    with pytest.raises(BackendUnavailable, match=r"backend other disagrees with eager .* take eager, and report it"):
        selfcheck.hold(broken, model)


def test_frames_of_the_callers_size_can_be_given(model: weights.Model) -> None:
    seen = []

    def change(values: Tensor) -> Tensor:
        seen.append(tuple(values.shape))
        return values

    frames = selfcheck.check_frames(6, 9)[:1]
    assert torch.equal((frames * 255).round(), frames * 255)
    assert selfcheck.hold(Other(model, change), model, frames=frames).max_error == 0
    assert seen == [(1, 12, 18, 3)] * 2
