"""The int8 convolution for sm_90a as it ships, run on a CPU: the reference's bits in every form, no fault unseen."""

from __future__ import annotations

from dataclasses import dataclass

import emulated
import pytest
import torch
from emulated import Emulated, Fault, assert_planted, some_always

from srgan_fast import kernels
from srgan_fast.kernels import hopper
from srgan_fast.kernels.cases import Draw
from srgan_fast.kernels.conv3x3.sm90 import CHANNELS, Layout, Tile
from srgan_fast.kernels.conv3x3_int8 import sm90
from srgan_fast.kernels.conv3x3_int8.sm90 import Variant, result_bytes
from srgan_fast.kernels.parity import check_case, compare_exact

pytestmark = [pytest.mark.beside, pytest.mark.skipif(emulated.COMPILER is None, reason=emulated.NO_COMPILER)]

SOURCE = "conv3x3_int8/sm90.cu"
LAYOUTS = pytest.mark.parametrize("layout", Layout, ids=lambda layout: layout.value)


@dataclass(frozen=True)
class Call:
    """One call of the kernel: what becomes of the sums, and on what."""

    layout: Layout = Layout.SHIFTED
    rows: int = 4
    prelu: bool = True
    residual: bool = False
    half: bool = True
    quantised: bool = True
    size: tuple[int, int, int] = (2, 9, 21)
    outputs: int = 64
    r: int = 1
    backwards: bool = False

    def differs(self, runtime: Emulated) -> str:
        """Run it: how the results differ from the reference's; an empty text if not by a bit."""
        tile = Tile(self.layout, self.rows, CHANNELS, result_bytes(self.half, self.quantised))
        variant = Variant(tile, self.prelu, self.residual, self.half, self.quantised)
        draw = Draw("cpu", torch.float16)
        (n, h, w), r, channels = self.size, self.r, self.outputs // self.r**2
        x, weight = draw.whole(n, h, w, CHANNELS), draw.whole(9, CHANNELS, self.outputs)
        # Sums of some 40000: int8 results within their range and beyond it, and many ties after rounding.
        gain, bias = draw.vector(self.outputs, 1.5e-3), draw.vector(self.outputs, 20.0)
        slopes = draw.slopes(channels) if self.prelu else None
        shape = (n, h * r, w * r, channels)
        residual = draw.normal(*shape, scale=30.0) if self.residual else None
        out = torch.full(shape, 99, dtype=torch.float16 if self.half else torch.int8)
        mine, theirs = (
            torch.full(shape, fill, dtype=torch.int8) if self.half and self.quantised else None for fill in (99, -99)
        )
        rest = slopes, residual, mine, 0.5
        sm90.launch(runtime, variant, 2, x, weight, gain, bias, *rest, out, r, self.backwards)
        reference = kernels.load("conv3x3_int8").reference
        want = reference(x, weight, gain, bias, out.dtype, slopes, residual, theirs, 0.5, r)
        pairs = {"result": (out, want)} | ({} if mine is None or theirs is None else {"quantised": (mine, theirs)})
        reports = {name: compare_exact(*pair) for name, pair in pairs.items()}
        return "; ".join(f"{name}: {report}" for name, report in reports.items() if not report.passed)


@LAYOUTS
@pytest.mark.parametrize("prelu", [False, True], ids=["linear", "prelu"])
@pytest.mark.parametrize(
    ("residual", "half", "quantised"),
    [(False, False, True), (False, True, False), (True, True, False), (False, True, True), (True, True, True)],
    ids=["int8", "half", "half, residual", "both", "both, residual"],
)
def test_the_bits_of_the_reference(layout: Layout, prelu: bool, residual: bool, half: bool, quantised: bool) -> None:
    call = Call(layout, 2 if layout is Layout.FLAT else 4, prelu, residual, half, quantised)
    for seed in range(3):
        assert not call.differs(Emulated(seed=seed))


@LAYOUTS
@pytest.mark.parametrize(
    "call",
    [
        Call(size=(1, 1, 1)),
        Call(size=(1, 5, 11), outputs=256, half=False),
        Call(size=(1, 5, 11), outputs=256, r=2),
        Call(size=(1, 3, 9), outputs=512, r=2, half=False),
        Call(size=(1, 9, 40), residual=True, backwards=True),
        Call(rows=8, size=(1, 17, 33), residual=True),
    ],
    ids=lambda call: f"{call.size}, {call.outputs}, r={call.r}",
)
def test_sizes_slices_and_sub_pixels(layout: Layout, call: Call) -> None:
    assert not Call(**(call.__dict__ | {"layout": layout})).differs(Emulated(seed=5))


@pytest.mark.parametrize(
    "case",
    [case for case in kernels.load("conv3x3_int8").CASES if "64 to" in case.name and "float32" not in case.name],
    ids=lambda case: case.name,
)
def test_run_takes_it(case: kernels.cases.Case) -> None:
    with hopper.emulated(Emulated(processors=3)):
        report = check_case(kernels.load("conv3x3_int8"), case.inputs("cpu", torch.float16), torch.float16)
        assert report.passed, report
        assert hopper.failures(torch.device("cpu")) == []
        assert "sm90" in hopper.choices(torch.device("cpu")).values()


FAULTS = [
    ("theirs, mine, 0x7351", "theirs, mine, 0x3715"),
    ("exchange(mine, 4)", "exchange(mine, 8)"),
    ("unpack<Half>(after[m], v[m][0], v[m][1]);", ""),
    ("fmaxf(v, -127.f)", "fmaxf(v, -128.f)"),
    ("__float2int_rn(", "static_cast<int>("),
    ("* 8 * 64 + 8, static_cast", "* 8 * 64 + 16, static_cast"),
    ("warp * 16, Swizzle::k64) +", "warp * 16, Swizzle::k32) +"),
    ("__fadd_rn(v[m][0], low)", "__fadd_rn(v[m][0], high)"),
    ("p.gain[slice * 64 + output]", "p.gain[slice * 64]"),
    ("p.slopes[slice % p.slope_slices * 64 + output]", "p.slopes[output & ~8]"),
    ("result + kHalfBytes + pixel * 64", "result + pixel * 64"),
    ("static_cast<float>(d[first + e])", "static_cast<float>(d[first + e] & ~1)"),
    ("v[m][e] >= 0.f ?", "v[m][e] >= 1.f ?"),
]


def test_every_fault_changes_a_text_that_is_there() -> None:
    for old, _ in FAULTS:
        assert_planted(SOURCE, old)


@pytest.mark.parametrize(("old", "new"), some_always(FAULTS))
def test_a_planted_fault_is_found(old: str, new: str) -> None:
    try:
        said = Call(residual=True).differs(Emulated(mutations={SOURCE: (old, new)}))
    except Fault as fault:
        said = str(fault)
    assert said


def test_a_product_and_a_sum_rounded_once_are_found() -> None:
    """The one fault that a single value shows: fused, the last bit differs now and then."""
    once = "__fadd_rn(__fmul_rn(static_cast<float>(d[first + e]), gain[m & 1]), bias[m & 1])"
    fused = "fmaf(static_cast<float>(d[first + e]), gain[m & 1], bias[m & 1])"
    calls = (Call(half=False, size=(4, 16, 32)), Call(size=(4, 16, 32), quantised=False, prelu=False))
    assert any(call.differs(Emulated(mutations={SOURCE: (once, fused)})) for call in calls)
