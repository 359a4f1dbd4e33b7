"""Hold an op to its reference: the one check that the tests of the kernels, their mutations and the table share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from srgan_fast import kernels
from srgan_fast.kernels import parity
from srgan_fast.kernels.cases import Arguments, Case, in_double
from srgan_fast.kernels.contract import LEVELS

FLOATS = (torch.float16, torch.float32, torch.bfloat16)

# Values around a result that nobody may touch, a row of a case and more; the result stays aligned to 16 bytes.
_GUARD = 4096


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def case_of(op: str, name: str) -> Case:
    """The case of an op that has this name."""
    (case,) = [case for case in kernels.load(op).CASES if case.name == name]
    return case


@dataclass
class Judgement:
    """What the rule says of one op on one case, and everything else that is wrong with it."""

    report: parity.Report
    problems: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return self.report.passed and not self.problems

    def __str__(self) -> str:
        return "; ".join([str(self.report), *self.problems])


class Guarded:
    """Memory for a result that is poisoned, with guards before and behind it."""

    def __init__(self, like: Tensor, poison: float) -> None:
        self._poison = poison
        self._whole = torch.full((like.numel() + 2 * _GUARD,), poison, dtype=like.dtype, device=like.device)
        self.inside = self._whole[_GUARD:-_GUARD].view(like.shape)

    def problems(self) -> list[str]:
        """What was done to the guards."""
        guards = torch.cat([self._whole[:_GUARD], self._whole[-_GUARD:]])
        kept = torch.full_like(guards, self._poison)
        same = torch.equal(guards.view(torch.uint8), kept.view(torch.uint8))
        return [] if same else ["wrote outside of its result"]


def judge(op: str, case: Case, device: str, dtype: torch.dtype) -> Judgement:
    """Run an op into poisoned memory and compare it with its reference; pixels as well as the floats behind them."""
    package = kernels.load(op)
    arguments = case.inputs(device, dtype)
    if getattr(package, "EXACT", False):
        return _judge_exact(package, arguments)
    pixels = arguments.get("dtype") if op == "tail" else None
    floats: Arguments = arguments | ({"dtype": torch.float32} if pixels in LEVELS else {})
    # What plain PyTorch errs is the measure, so it may not round to TF32.
    also = [name for name in getattr(package, "RESULTS", ()) if floats.get(name) is not None]
    with parity.exact_float32(device):
        plain = parity.all_results(package, package.reference, floats)
        truth = parity.all_results(package, package.reference, in_double(floats))
    memories = [Guarded(value, float("nan")) for value in plain]
    before = {name: v.clone() for name, v in floats.items() if isinstance(v, Tensor) and name not in also}
    written = {name: memory.inside for name, memory in zip(also, memories[1:], strict=True)}
    result = package.run(**floats | written, out=memories[0].inside)
    insides = [memory.inside for memory in memories]
    judgement = Judgement(parity.compare_all(insides, plain, truth, dtype, floor=case.floor))
    if result.data_ptr() != memories[0].inside.data_ptr():
        judgement.problems.append("returned other memory than out")
    for memory in memories:
        judgement.problems += memory.problems()
        if torch.isnan(memory.inside).any():
            judgement.problems.append(f"{int(torch.isnan(memory.inside).sum())} values never written, or NaN")
    for name, value in before.items():
        if not torch.equal(value, floats[name]):
            judgement.problems.append(f"changed its argument {name}")
    if pixels in LEVELS:
        judgement.problems += _pixels(package.run, arguments, result, pixels)
    return judgement


def _judge_exact(package: Any, arguments: Arguments) -> Judgement:
    """Every result over two poisons, none of them NaN, which integers do not have: what is not written differs."""
    also = [name for name in getattr(package, "RESULTS", ()) if arguments.get(name) is not None]
    theirs = arguments | {name: arguments[name].clone() for name in also}
    with parity.exact_float32("cuda" if torch.cuda.is_available() else "cpu"):
        reference = package.reference(**theirs)
    several = not isinstance(reference, Tensor)
    wanted = [*parity.returned(reference), *(theirs[name] for name in also)]
    judgement = Judgement(parity.compare_exact(wanted[0], wanted[0]))
    before = {name: v.clone() for name, v in arguments.items() if isinstance(v, Tensor) and name not in also}
    for poison in (101, 77):
        memories = [Guarded(value, poison) for value in wanted]
        insides = [memory.inside for memory in memories]
        out = insides[: len(insides) - len(also)]
        written = dict(zip(also, insides[len(out) :], strict=True))
        result = package.run(**arguments | written, out=tuple(out) if several else out[0])
        if [each.data_ptr() for each in parity.returned(result)] != [each.data_ptr() for each in out]:
            judgement.problems.append("returned other memory than out")
        for memory, value in zip(memories, wanted, strict=True):
            judgement.problems += memory.problems()
            report = parity.compare_exact(memory.inside, value)
            if judgement.report.passed and not report.passed:
                judgement.report = report
    for name, value in before.items():
        if not torch.equal(value, arguments[name]):
            judgement.problems.append(f"changed its argument {name}")
    return judgement


def _pixels(run: Callable[..., Tensor], arguments: Arguments, floats: Tensor, dtype: torch.dtype) -> list[str]:
    """What is wrong with the integer pixels, which must be the floats quantised, bit for bit."""
    top = LEVELS[dtype]
    problems = []
    results = []
    # No value is impossible in a pixel, so it is written over two.
    for poison in (0, top):
        memory = Guarded(floats.to(torch.int32).to(dtype), poison)
        run(**arguments, out=memory.inside)
        problems += memory.problems()
        results.append(memory.inside.to(torch.int32))
    if not torch.equal(*results):
        problems.append("some pixels never written")
    wanted = quantised(floats, top)
    right = results[0] == wanted
    if not right.all():
        problems.append(f"{int((~right).sum())} pixels are not the quantised floats")
    return problems


def quantised(floats: Tensor, top: int) -> Tensor:
    """floor(clamp(v * m, 0, m) + 0.5) in float32, as int32."""
    return ((floats * top).clamp(0, top) + 0.5).floor().to(torch.int32)


def judge_backward(op: str, case: Case, device: str, dtype: torch.dtype) -> dict[str, Judgement]:
    """The gradients of an op by its kernels, each held to the rule."""
    return (_judge_shuffle if op == "pixelshuffle_prelu" else _judge_norm)(case, device, dtype)


def _judge_norm(case: Case, device: str, dtype: torch.dtype) -> dict[str, Judgement]:
    """The gradients of batchnorm_act against the closed form in its reference, and its statistics against theirs."""
    package: Any = kernels.load("batchnorm_act")
    arguments = {name: value for name, value in case.inputs(device, dtype).items() if name != "skip"}
    x = arguments["x"]
    dy = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    given = [(arguments, dy), (arguments, dy), (in_double(arguments), dy.double())]
    calls = (package.backward, package.reference_backward, package.reference_backward)
    gradients = [call(**given, dy=dy) for call, (given, dy) in zip(calls, given, strict=True)]
    calls = (package.statistics, package.reference_statistics, package.reference_statistics)
    moments = [call(given["x"]) for call, (given, _) in zip(calls, given, strict=True)]
    found = {"dx": [dx for dx, _ in gradients]}
    found |= {
        name: [sums[row] for _, sums in gradients]
        for row, name in enumerate(("dbeta", "dgamma", "dslopes")[: len(gradients[0][1])])
    }
    found |= {name: [each[i] for each in moments] for i, name in enumerate(("mean", "variance"))}
    return {
        name: Judgement(
            parity.compare(*three, dtype, floor=None if name == "dx" else parity.sum_floor(three[2], dtype))
        )
        for name, three in found.items()
    }


def _judge_shuffle(case: Case, device: str, dtype: torch.dtype) -> dict[str, Judgement]:
    """The gradients of pixelshuffle_prelu against autograd through its reference."""
    package: Any = kernels.load("pixelshuffle_prelu")
    arguments = case.inputs(device, dtype)
    dy = torch.randn(package.reference(**arguments).shape, generator=torch.Generator().manual_seed(1))
    dy = dy.to(device, dtype)

    def by_autograd(given: Arguments, wide: Tensor) -> tuple[Tensor, ...]:
        x, slopes = (given[name].detach().requires_grad_() for name in ("x", "slopes"))
        return torch.autograd.grad(package.reference(x, slopes, given["r"]), (x, slopes), wide)

    plain = by_autograd(arguments, dy)
    truth = by_autograd(in_double(arguments), dy.double())
    fast = package.backward(arguments["x"], arguments["slopes"], dy, arguments["r"])
    return {
        name: Judgement(parity.compare(*three, dtype))
        for name, *three in zip(("dx", "dslopes"), fast, plain, truth, strict=True)
    }
