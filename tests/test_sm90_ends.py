"""head and tail for sm_90a as they ship, run on a CPU: right for every source and picture; planted faults are found."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import emulated
import pytest
import torch
from emulated import Emulated, Fault, assert_planted, some_always
from torch import Tensor

from srgan_fast import kernels
from srgan_fast.kernels import hopper, parity
from srgan_fast.kernels.cases import Draw
from srgan_fast.kernels.contract import LEVELS
from srgan_fast.kernels.head import sm90 as head
from srgan_fast.kernels.parity import Report
from srgan_fast.kernels.tail import sm90 as tail

pytestmark = [pytest.mark.beside, pytest.mark.skipif(emulated.COMPILER is None, reason=emulated.NO_COMPILER)]

HALF = torch.float16
TILE = tail.Tile(2, 5, 4)
AROUND = 512  # values on each side of a result, which must stay
ANY_MODEL = emulated.MODELS  # of swizzled operands: nothing here starts inside of a pattern


def guarded(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Callable[[], None]]:
    """Memory for a result, poisoned, and a check that nothing around it was written."""
    poison = math.nan if dtype.is_floating_point else 77
    whole = torch.full((math.prod(shape) + 2 * AROUND,), 3.0).to(dtype)
    out = whole[AROUND:-AROUND].view(shape).fill_(poison)

    def check() -> None:
        kept = torch.cat([whole[:AROUND], whole[-AROUND:]])
        assert torch.equal(kept.float(), torch.full((2 * AROUND,), 3.0))

    return out, check


@dataclass(frozen=True)
class Head:
    """One call of head; `frames` is None for prepared pixels."""

    size: tuple[int, int, int] = (2, 5, 19)  # frames, rows, columns: tiles, and a part of another, both ways
    kernel: int = 9
    rows: int = 4
    frames: torch.dtype | None = torch.uint8
    dtype: torch.dtype = HALF
    blocks: int = 2
    backwards: bool = False
    after_another: bool = True

    def on(self, runtime: Emulated) -> Report:
        """Hold it against the reference."""
        draw, (n, h, w) = Draw("cpu", self.dtype), self.size
        arguments: dict[str, Any] = {
            "weight": kernels.load("head").pack(draw.normal(64, 3, self.kernel, self.kernel, scale=0.5 / self.kernel)),
            "bias": draw.vector(64, 0.5),
            "slopes": draw.slopes(64),
            "gain": None,
            "offset": None,
        }
        if self.frames is None:
            x = torch.nn.functional.pad(draw.normal(n, h, w, 3), (0, 1))
        else:
            x = (draw.pixels if self.frames in LEVELS else draw.normal)(n, h, w, 3, dtype=self.frames)
            arguments |= {"gain": torch.tensor([1.0, 1.5, 2.0]) / LEVELS.get(self.frames, 1)}
            arguments |= {"offset": torch.tensor([-2.0, -1.0, 0.7])}
        out, untouched = guarded((n, h, w, 64), self.dtype)
        variant = head.Variant(self.dtype, self.frames, self.kernel, self.rows)
        head.launch(runtime, variant, self.blocks, x, **arguments, out=out, backwards=self.backwards)
        untouched()
        return hopper.compare_by(kernels.load("head").reference, {"x": x, **arguments}, out)


@dataclass(frozen=True)
class Tail:
    """One call of tail; pixels of integers are held against its own floats as well, bit for bit."""

    size: tuple[int, int, int] = (2, 5, 19)
    tile: tail.Tile = TILE
    r: int = 2
    tanh: bool = True
    result: torch.dtype = torch.float32
    dtype: torch.dtype = HALF
    blocks: int = 2
    backwards: bool = False

    def arguments(self) -> dict[str, Any]:
        draw, (n, h, w) = Draw("cpu", self.dtype), self.size
        cin, outputs = 64 * self.tile.slabs, 3 * self.r**2
        return {
            "x": draw.normal(n, h, w, cin),
            "weight": draw.weight(self.tile.size**2, cin, outputs),
            "bias": draw.vector(outputs, 0.3),
            "gain": torch.tensor([0.4, 0.6, 0.5]),
            "offset": torch.tensor([0.5, 0.3, 0.7]),
        }

    def picture(self, runtime: Emulated, arguments: dict[str, Any], scratch: Tensor | None = None) -> Tensor:
        """Run it; nothing outside the picture may be written."""
        n, h, w = self.size
        out, untouched = guarded((n, h * self.r, w * self.r, 3), self.result)
        variant = tail.Variant(self.dtype, self.tile, self.r, self.tanh, self.result)
        runtime.fresh = [arguments["x"]]
        tail.launch(runtime, variant, self.blocks, **arguments, out=out, scratch=scratch, backwards=self.backwards)
        untouched()
        return out

    def on(self, runtime: Emulated) -> Report:
        """Hold it against the reference."""
        arguments = self.arguments()
        floats = replace(self, result=torch.float32 if self.result in LEVELS else self.result)
        picture = floats.picture(runtime, arguments)
        if self.result in LEVELS:
            levels = (picture * LEVELS[self.result] + 0.5).floor().to(torch.int32).to(self.result)
            assert torch.equal(self.picture(runtime, arguments).int(), levels.int())
            assert int(levels.int().min()) == 0
            assert int(levels.int().max()) == LEVELS[self.result]
        rest = {"r": self.r, "dtype": picture.dtype, "tanh": self.tanh}
        return hopper.compare_by(kernels.load("tail").reference, arguments | rest, picture, self.dtype)


def named(change: dict[str, Any]) -> str:
    return ",".join(f"{name}={value}" for name, value in change.items())


@pytest.mark.parametrize(
    "change",
    [
        *({"frames": frames} for frames in (torch.uint8, torch.uint16, torch.float32, None)),
        *({"kernel": kernel, "frames": None} for kernel in (3, 5, 7)),
        {"dtype": torch.bfloat16},
        {"dtype": torch.bfloat16, "frames": None, "kernel": 5},
        {"size": (1, 1, 1)},
        {"size": (3, 1, 1), "frames": None, "backwards": True},
        {"size": (1, 1, 40), "blocks": 1},
        {"size": (1, 23, 1), "blocks": 3},
        {"size": (2, 9, 31), "backwards": True},
        {"size": (2, 9, 31), "blocks": 99},
        {"rows": 32, "size": (1, 33, 9)},
    ],
    ids=named,
)
def test_head_is_right(change: dict[str, Any]) -> None:
    for seed in range(3):
        report = Head(**change).on(Emulated(seed=seed))
        assert report.passed, f"seed {seed}: {report}"


@pytest.mark.parametrize(
    "change",
    [
        *({"result": result} for result in (torch.uint8, torch.uint16, HALF, torch.bfloat16, torch.float32)),
        {"dtype": torch.bfloat16, "result": torch.uint8},
        {"tanh": False, "result": torch.uint8},
        {"size": (1, 1, 1)},
        {"size": (3, 1, 1), "backwards": True},
        {"size": (1, 1, 261), "blocks": 1},
        {"size": (1, 23, 1), "blocks": 3},
        {"size": (2, 9, 31), "backwards": True},
        {"size": (2, 9, 31), "blocks": 99},
        {"tile": tail.Tile(4, 5, 16), "size": (1, 17, 17), "result": torch.uint8},
        {"tile": tail.Tile(1, 3, 32), "size": (1, 33, 9)},
        {"tile": tail.Tile(1, 7, 2), "r": 1, "result": torch.uint8, "size": (2, 5, 35)},
        {"tile": tail.Tile(1, 3, 2), "r": 2, "result": torch.uint16},
        {"tile": tail.Tile(1, 1, 2), "r": 4, "result": torch.uint8, "size": (2, 9, 31)},
        {"tile": tail.Tile(1, 9, 2), "r": 1, "result": HALF},
    ],
    ids=named,
)
def test_tail_is_right(change: dict[str, Any]) -> None:
    for seed in range(2):
        report = Tail(**change).on(Emulated(seed=seed))
        assert report.passed, f"seed {seed}: {report}"


@pytest.mark.parametrize("model", ANY_MODEL)
def test_both_are_right_however_the_hardware_reads_shifted_operands(model: str) -> None:
    assert Head().on(Emulated(model=model)).passed
    assert Tail().on(Emulated(model=model)).passed


def test_tail_keeps_a_nan() -> None:
    """A float frame shows what went wrong before it; and integers have some level there."""
    call = Tail(tanh=False)
    arguments = call.arguments()
    arguments["x"][0, 0, 0, 0] = math.nan
    picture = call.picture(Emulated(), arguments)
    # The 5x5 window around the first map reaches 3 x 3 maps of the frame, so 6 x 6 pixels.
    assert torch.isnan(picture[0, :6, :6]).all()
    assert int(torch.isnan(picture).sum()) == 6 * 6 * 3


def test_tail_sums_in_memory_that_it_is_lent() -> None:
    call = Tail()
    n, h, w = call.size
    lent = torch.full((n, h, w, 240), 0xFF, dtype=torch.uint8).view(torch.float32)  # NaN in every format
    arguments = call.arguments()
    assert torch.equal(call.picture(Emulated(), arguments, lent), call.picture(Emulated(), arguments))
    used = lent.view(-1).view(HALF)
    assert torch.isfinite(used[: n * h * w * 64]).all()
    assert torch.isnan(used[n * h * w * 64 :]).all()
    assert tail._memory(lent.view(-1)[1:], 64, lent.device).data_ptr() != lent.data_ptr() + 4
    assert tail._memory(lent[:1], n * h * w * 64, lent.device).numel() == n * h * w * 64


@pytest.mark.parametrize("dtype", [HALF, pytest.param(torch.bfloat16, marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("op", ["head", "tail"])
def test_the_op_takes_them_wherever_they_cover_a_case(op: str, dtype: torch.dtype) -> None:
    """The cases of the op, as a user calls it: checked, chosen, packed, launched; the others go elsewhere."""
    package = kernels.load(op)
    taken = 0
    runtime = Emulated()
    for case in package.CASES:
        with hopper.emulated(runtime):
            before = runtime.launches
            report = parity.check_case(package, case.inputs("cpu", dtype), dtype, case.floor)
            taken += runtime.launches > before
        assert report.passed, f"{case.name}: {report}"
    assert taken == {"head": 8, "tail": 6}[op]
    with hopper.emulated(runtime):
        assert hopper.failures(torch.device("cpu")) == []


def head_offer(**change: Any) -> hopper.Offer | str:
    arguments = kernels.load("head").CASES[1].inputs("cpu", HALF) | {"gain": None, "offset": None} | change
    return head.offer(**arguments, out=torch.empty(*arguments["x"].shape[:-1], 64, dtype=HALF))


def tail_offer(**change: Any) -> hopper.Offer | str:
    arguments = Tail().arguments() | {"r": 2} | change
    n, h, w, _ = arguments["x"].shape
    return tail.offer(**({"out": torch.empty(n, 2 * h, 2 * w, 3)} | arguments))


def test_what_they_do_not_cover_is_said() -> None:
    assert "Hopper" in str(head_offer())
    assert "Hopper" in str(tail_offer())
    vector, some = torch.ones(3), Tail().arguments()
    with hopper.emulated(Emulated()):
        assert isinstance(head_offer(), hopper.Offer)
        assert "float32" in str(head_offer(weight=torch.empty(9, 64, 64)))
        assert "makes 32" in str(head_offer(weight=torch.empty(9, 64, 32, dtype=HALF)))
        assert "by 11" in str(head_offer(weight=torch.empty(11, 64, 64, dtype=HALF)))
        double = torch.empty(2, 9, 17, 3, dtype=torch.float64)
        assert "float64" in str(head_offer(x=double, gain=vector, offset=vector))
        off = torch.empty(2 * 9 * 17 * 4 + 1, dtype=HALF)[1:].view(2, 9, 17, 4)
        assert "words" in str(head_offer(x=off))
        assert isinstance(tail_offer(), hopper.Offer)
        assert "float32" in str(tail_offer(x=some["x"].float()))
        assert "float64" in str(tail_offer(out=torch.empty(2, 10, 38, 3, dtype=torch.float64)))
        assert "base" in str(tail_offer(base=torch.empty(2, 5, 19, 4, dtype=HALF)))
        assert "60" not in str(tail_offer(weight=torch.empty(49, 128, 12, dtype=HALF)))
        assert "84" in str(tail_offer(weight=torch.empty(49, 128, 12, dtype=HALF)))
        wide = {"x": torch.empty(1, 2, 2, 512, dtype=HALF), "weight": torch.empty(25, 512, 12, dtype=HALF)}
        assert "512" in str(tail_offer(**wide))
        assert "80" in str(tail_offer(x=wide["x"][..., :80], weight=wide["weight"][:, :80]))
        picture = torch.empty(2 * 10 * 38 * 3 + 1)[1:].view(2, 10, 38, 3)
        assert "words" in str(tail_offer(out=picture))


def test_tiles_of_the_papers_tail_leave_room_to_copy_ahead() -> None:
    assert max(tail.heights(4, 5)) == 16
    assert all(tail.Tile(4, 5, rows).stages >= 3 for rows in tail.heights(4, 5))
    assert tail.heights(8, 5) == ()


# --- planted faults: each replaces one piece of a shipped source --------------------------------------------------

HEAD, TAIL, SUMS = "head/sm90.cu", "tail/sm90.cu", "include/sums.cuh"
UNFENCED, STILL_READ, WRONG = "without fence_async_shared", "still reads", "FAIL"
AHEAD = "before any thread of the block called wait_for_previous_kernel|has not called wait_for_previous_kernel"
FENCE = "    fence_async_shared();\n    named_barrier(group + 1, 128);\n"
WAIT = "    wgmma_wait();\n    if ((thread & 31) == 0) barrier_arrive(barrier(kHeadFree + group));\n"

FAULTS: dict[str, tuple[Head | Tail, str, str, str, str]] = {
    "head: leading distance": (Head(), HEAD, "kRowBytes, 32)", "kRowBytes, 16)", WRONG),
    "head: distance between rows": (
        Head(),
        HEAD,
        "operand(halo, Swizzle::kNone, kRowBytes, 32)",
        "operand(halo, Swizzle::kNone, 128, 32)",
        WRONG,
    ),
    "head: leading distance of weights": (Head(), HEAD, "256, 128)", "128, 256)", WRONG),
    "head: last words of rows": (Head(), HEAD, "(SIZE - 1) * 16", "SIZE * 16", WRONG),
    "head: the row beside the last": (Head(), HEAD, ": SIZE - 2;", ": SIZE - 1;", f"{WRONG}|outside|{STILL_READ}|FAIL"),
    "head: zeros before scaling": (Head(), HEAD, "+ x) : 0;", "+ x) : read(p.x, 0);", WRONG),
    "head: no neighbour": (Head(), HEAD, "        if (column > 0) store_shared(word - 8, channels[k]);\n", "", WRONG),
    "head: right of the halo": (Head(), HEAD, "store_shared(word + 8, uint64_t{0})", "(void)word", f"{WRONG}|nan"),
    "head: offset left out": (Head(), HEAD, "gain[c], offset[c])", "gain[c], 0.f)", WRONG),
    "head: slope of the other output": (Head(), HEAD, "v * slopes[half]", "v * slopes[half ^ 1]", WRONG),
    "head: bias of the other output": (Head(), HEAD, "sum + bias[half]", "sum + bias[half ^ 1]", WRONG),
    "head: no fence of pixels": (Head(), HEAD, "      fence_async_shared();\n", "", UNFENCED),
    "head: no fence of results": (Head(), HEAD, FENCE, FENCE.splitlines()[1] + "\n", UNFENCED),
    "head: no barrier before a store": (Head(), HEAD, FENCE, FENCE.splitlines()[0] + "\n", UNFENCED),
    "head: no wait for the store before": (
        Head(size=(2, 9, 31)),
        HEAD,
        "    if (thread == 0) store_wait_read();\n",
        "",
        STILL_READ,
    ),
    "head: a halo freed early": (Head(size=(2, 9, 31)), HEAD, WAIT, "".join(WAIT.splitlines(True)[::-1]), STILL_READ),
    "head: no wait for the halo": (
        Head(),
        HEAD,
        "    barrier_wait(barrier(kHeadFull + group), taken & 1);\n",
        "",
        f"{UNFENCED}|{STILL_READ}|{WRONG}",
    ),
    "head: pixels of a part of the threads": (
        Head(),
        HEAD,
        "kHeadFull + g), 128)",
        "kHeadFull + g), 96)",
        f"more often|{UNFENCED}|{WRONG}|deadlock",
    ),
    "head: turns of half a warpgroup": (Head(), HEAD, "kHeadTurn + g), 128)", "kHeadTurn + g), 64)", "deadlock|more o"),
    "head: parity of a free halo": (Head(), HEAD, "& 1) ^ 1);", "& 1));", "deadlock"),
    "swizzle of results": (Head(), SUMS, "word * 16, Swizzle::k128", "word * 16, Swizzle::k64", WRONG),
    "tail: offset of a tap": (
        Tail(),
        TAIL,
        "advanced(b, tap * Tile::kRowBytes + k)",
        "advanced(b, tap * 128 + k)",
        WRONG,
    ),
    "tail: taps in another order": (Tail(), TAIL, "advanced(taps, tap *", "advanced(taps, (SIZE - 1 - tap) *", WRONG),
    "tail: weights of the first slab": (Tail(), TAIL, "slab * SIZE * Tile::kTapBytes);", "0);", WRONG),
    "tail: rows above": (Tail(), TAIL, "y - SIZE / 2, n)", "y, n)", WRONG),
    "tail: no fence": (Tail(), TAIL, FENCE, FENCE.splitlines()[1] + "\n", UNFENCED),
    "tail: sums over a slab in use": (
        Tail(),
        TAIL,
        "    named_barrier(group + 1, 128);\n    write_pixels",
        "    write_pixels",
        STILL_READ,
    ),
    "tail: a slab freed before its sums are copied": (
        Tail(size=(2, 9, 31)),
        TAIL,
        "      store_wait_read();\n",
        "",
        STILL_READ,
    ),
    "tail: the last slab freed twice": (
        Tail(),
        TAIL,
        "if (slab < SLABS - 1 && ",
        "if (",
        f"more often|{STILL_READ}|still",
    ),
    "tail: turns of a lonely warpgroup": (
        Tail(size=(1, 4, 19), blocks=1),
        TAIL,
        "&& group == 0;",
        "&& group == 2;",
        f"deadlock|{WRONG}|still",
    ),
    "tail: too few arrivals": (
        Tail(size=(2, 9, 31)),
        TAIL,
        "kSlabFree + stage), 4);\n    }\n    barrier_init_done",
        "kSlabFree + stage), 3);\n    }\n    barrier_init_done",
        f"{STILL_READ}|more often",
    ),
    "tail: fewer bytes expected": (
        Tail(),
        TAIL,
        "stage), Tile::kSlabBytes);",
        "stage), Tile::kSlabBytes - 128);",
        "more than its phase",
    ),
    "tail: a copy ahead of the kernel before": (
        Tail(),
        TAIL,
        "    wait_for_previous_kernel();\n    for",
        "    for",
        AHEAD,
    ),
    "tail: columns in another order": (Tail(), TAIL, "(thread + column) *", "(thread + SIZE - 1 - column) *", WRONG),
    "tail: sums from the row before": (
        Tail(),
        TAIL,
        "if (x >= 0 && x < p.width) v",
        "if (x < p.width) v",
        f"{WRONG}|nan",
    ),
    "tail: no clamp at zero": (Tail(), TAIL, "scaled < 0.f ? 0.f : ", "", WRONG),
    "tail: no clamp at one": (Tail(), TAIL, "scaled > 1.f ? 1.f : ", "", WRONG),
    "tail: no tanh": (Tail(), TAIL, "TANH ? tanhf(v[o]) : v[o]", "v[o]", WRONG),
    "tail: shuffle transposed": (Tail(), TAIL, "down * R + beside]", "beside * R + down]", WRONG),
    "tail: offset left out": (Tail(), TAIL, "p.offset[colour])", "0.f)", WRONG),
    "tail: truncated levels": (Tail(result=torch.uint8), TAIL, "kTop), 0.5f)", "kTop), 0.f)", "levels"),
}


def found(call: Head | Tail, mutations: dict[str, tuple[str, str]]) -> str:
    """What is wrong with a kernel so altered: nothing, or a fault, or a report, or which comparison failed."""
    # Races need the right moment: a fault counts as found if a few seeds find it.
    for seed in range(6):
        try:
            report = call.on(Emulated(seed=seed, mutations=mutations))
        except Fault as error:
            return str(error)
        except AssertionError:
            return "levels, or memory around the result"
        if not report.passed:
            return str(report)
    return "nothing"


def test_every_fault_changes_a_text_that_is_there() -> None:
    for _, file, shipped, *_ in FAULTS.values():
        assert_planted(file, shipped)


@pytest.mark.parametrize("fault", some_always(FAULTS))
def test_a_planted_fault_is_found(fault: str) -> None:
    call, file, shipped, planted, said = FAULTS[fault]
    assert re.search(said, found(call, {file: (shipped, planted)})), found(call, {file: (shipped, planted)})


def test_a_store_before_anyone_waited_for_the_kernel_before_is_found() -> None:
    waits = [
        (f"  wait_for_previous_kernel();\n  {after}", f"  {after}") for after in ("  const HeadPixel", "const float b")
    ]
    with pytest.raises(Fault, match="before any thread of the block called wait_for_previous_kernel"):
        Head().on(Emulated(mutations={HEAD: waits}))
