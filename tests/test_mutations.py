"""A test of the tests: kernels that are broken on purpose, each by one change of its text, are caught.

Two faults of each op's kernels always, all with the long tests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from ahead_of_time import assumed
from mutations import BACKWARD, MUTATIONS, Mutation, Plant, everywhere, identity, plant, source
from mutations_colour import COLOUR
from op_parity import case_of, judge, judge_backward

from srgan_fast import kernels

__all__ = ["plant"]

_ALWAYS = 2
# Unchanged copies that have passed, once for all the mutations of one case.
_whole: set[tuple[str, str, int, str]] = set()


def some_always(mutations: Iterable[Mutation]) -> list[object]:
    seen: Counter[tuple[str, int]] = Counter()
    found = []
    for each in mutations:
        seen[each.op, each.sm] += 1
        marks = pytest.mark.slow if seen[each.op, each.sm] > _ALWAYS else ()
        found.append(pytest.param(each, id=identity(each), marks=marks))
    return found


@everywhere
@pytest.mark.parametrize("mutation", some_always(MUTATIONS + COLOUR))
def test_a_broken_kernel_is_caught(mutation: Mutation, device: str, plant: Plant) -> None:
    real = kernels.architecture(torch.device(device))
    if device == "cuda" and mutation.sm == 90 and real not in (90, 100):
        pytest.skip("this GPU takes the pointer kernels")
    case = case_of(mutation.op, mutation.case)
    with assumed(mutation.sm):
        whole = (mutation.op, mutation.case, mutation.sm, device)
        if whole not in _whole:
            plant(mutation.op)
            unchanged = judge(mutation.op, case, device, torch.float16)
            assert unchanged.passed, f"the copy fails before it is broken: {unchanged}"
            _whole.add(whole)
        plant(mutation.op, mutation.old, mutation.new, mutation.shared)
        # What it reads beyond its tensors is whatever lies there, infinities included: no reason for NumPy to warn.
        with np.errstate(all="ignore"):
            broken = judge(mutation.op, case, device, torch.float16)
    assert not broken.passed, f"passed although broken: {broken}"


@everywhere
@pytest.mark.parametrize("mutation", some_always(BACKWARD))
def test_a_broken_gradient_is_caught(mutation: Mutation, device: str, plant: Plant) -> None:
    case = case_of(mutation.op, mutation.case)
    plant(mutation.op)
    whole = judge_backward(mutation.op, case, device, torch.float32)
    assert all(judgement.passed for judgement in whole.values()), whole
    plant(mutation.op, mutation.old, mutation.new)
    with np.errstate(all="ignore"):
        broken = judge_backward(mutation.op, case, device, torch.float32)
    assert not all(judgement.passed for judgement in broken.values())


@pytest.mark.interpreter
def test_a_change_that_matches_nothing_is_refused(plant: Plant) -> None:
    with pytest.raises(AssertionError, match="no longer there"):
        plant("conv3x3", "no such text", "other")


def test_every_change_is_one_of_a_text_that_is_there() -> None:
    """Those that are judged with the long tests too: whoever changes a kernel learns it at once."""
    for mutation in MUTATIONS + COLOUR + BACKWARD:
        source(mutation.op, mutation.old, mutation.new, mutation.shared)


def test_every_op_has_mutations() -> None:
    assert {mutation.op for mutation in MUTATIONS + COLOUR} == set(kernels.OPS)
    for op, case in {(mutation.op, mutation.case) for mutation in MUTATIONS + COLOUR + BACKWARD}:
        case_of(op, case)
