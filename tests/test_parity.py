"""The tolerance rule passes rounding and fails mistakes, in every dtype; data movement has no tolerance."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from srgan_fast.kernels.parity import RMS_BOUND, compare, compare_exact

DTYPES = list(RMS_BOUND)


def product(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """A matrix product as the rule sees it: fast (summed in another order), plain, truth."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(40, 40, generator=generator).to(dtype) for _ in range(2))
    order = torch.randperm(40, generator=generator)
    return a[:, order] @ b[order], a @ b, a.double() @ b.double()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rounding_passes(dtype: torch.dtype) -> None:
    report = compare(*product(dtype), dtype)
    assert report.passed
    assert str(report).startswith("pass: max error")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_wrong_value_fails(dtype: torch.dtype) -> None:
    fast, plain, truth = product(dtype)
    fast[3, 4] += 5 * float((plain.double() - truth).abs().max()) + 4 * torch.finfo(dtype).eps * float(
        truth.abs().max()
    )
    report = compare(fast, plain, truth, dtype)
    assert not report.passed
    assert str(report).startswith("FAIL")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_small_error_everywhere_fails_by_rms(dtype: torch.dtype) -> None:
    _, plain, truth = product(dtype)
    # A reference that rounds badly once would let a fast path be wrong everywhere, were it not for the RMS.
    plain[0, 0] += 10
    report = compare(truth * (1 + 2 * RMS_BOUND[dtype]), plain, truth, dtype)
    assert report.max_error <= report.max_allowed
    assert not report.passed


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("side", ["fast", "plain", "both"])
def test_what_is_not_finite_fails(bad: float, side: str) -> None:
    fast, plain, truth = product(torch.float32)
    if side in ("fast", "both"):
        fast[0, 0] = bad
    if side in ("plain", "both"):
        plain[0, 0] = bad
    assert not compare(fast, plain, truth, torch.float32).passed


def test_the_floor_is_one_rounding_unless_given() -> None:
    truth = torch.full((4,), 2.0, dtype=torch.float64)
    plain = truth.float()
    one_off = plain + 2 * torch.finfo(torch.float32).eps
    assert compare(one_off, plain, truth, torch.float32).passed
    assert not compare(one_off, plain, truth, torch.float32, floor=0.0).passed
    assert not compare(plain + 6 * torch.finfo(torch.float32).eps, plain, truth, torch.float32).passed


def test_zero_truth() -> None:
    zero = torch.zeros(3, dtype=torch.float64)
    assert compare(zero.float(), zero.float(), zero, torch.float32).passed
    assert not compare(zero.float() + 1e-6, zero.float(), zero, torch.float32).passed


def test_shapes_are_never_broadcast() -> None:
    truth = torch.zeros(3, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match="one shape"):
        compare(torch.zeros(4), truth.float(), truth, torch.float32)
    with pytest.raises(ValueError, match="at least one value"):
        compare(torch.zeros(0), torch.zeros(0), torch.zeros(0, dtype=torch.float64), torch.float32)
    with pytest.raises(ValueError, match="float64"):
        compare(truth.float(), truth.float(), truth.float(), torch.float32)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int64, *DTYPES], ids=str)
def test_movement_is_exact(dtype: torch.dtype) -> None:
    truth = torch.arange(24).to(dtype).reshape(2, 3, 4)
    assert compare_exact(truth.clone(), truth).passed
    assert compare_exact(truth.transpose(1, 2).contiguous().transpose(1, 2), truth).passed
    moved = truth.clone()
    moved[0, 0] = truth[0, 1]
    assert not compare_exact(moved, truth).passed


def test_movement_keeps_bits_and_dtype() -> None:
    nan = torch.tensor([float("nan"), 0.0])
    assert compare_exact(nan.clone(), nan).passed
    assert not compare_exact(torch.tensor([0.0]), torch.tensor([-0.0])).passed
    with pytest.raises(ValueError, match="one dtype"):
        compare_exact(torch.zeros(2), torch.zeros(2, dtype=torch.float64))
