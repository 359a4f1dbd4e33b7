"""When a kernel for sm_90a is trusted and taken, and how tiles are cut; the kernels themselves are tested elsewhere."""

from __future__ import annotations

import gc
import logging
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from srgan_fast import kernels
from srgan_fast.kernels import driver, hopper, launch, nvrtc
from srgan_fast.kernels.conv3x3 import sm90
from srgan_fast.kernels.nvrtc import Specialisation
from srgan_fast.kernels.parity import Report

RIGHT, WRONG = Report(True, 1e-4, 2e-4, 1e-5, 1e-3), Report(False, 4.9, 2e-4, 1.0, 1e-3)


class Noting:
    """A runtime that notes what is asked of it, and launches nothing."""

    device, processors = torch.device("cpu"), 132

    def __init__(self) -> None:
        self.prepared: list[Specialisation] = []
        self.launched: list[str] = []
        self.checked: list[str] = []
        self.error: Exception | None = None

    def prepare(self, sources: Sequence[Specialisation]) -> None:
        self.prepared += sources

    def kernel(self, source: Specialisation, shared_bytes: int) -> Any:
        return source

    def tensor_map(self, address: int, dtype: torch.dtype, sizes: Any, strides: Any, box: Any, swizzle: int) -> bytes:
        return bytes(128)

    def launch(
        self, kernel: Any, grid: Any, threads: int, parameters: Any, *, what: str = "", overlap: bool = True
    ) -> None:
        self.launched.append(what)

    def check(self, what: str) -> None:
        self.checked.append(what)
        if self.error is not None:
            raise self.error


def offer_of(runtime: Noting, outcome: Report | Exception, name: str = "twice") -> hopper.Offer:
    """An offer to double a tensor, whose kernel's check ends as told."""

    def check(_: hopper.Runtime) -> Report:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    kernel = hopper.Kernel("twice", Specialisation("twice/sm90.cu", name), 0, check)
    return hopper.Offer(runtime, (kernel,), f"{name} of 3", lambda out: [None, out.fill_(2)][0])


def rival(out: Tensor) -> Tensor:
    return out.fill_(1)


def test_a_kernel_that_passes_its_check_runs_and_its_first_shape_is_waited_for() -> None:
    runtime, out = Noting(), torch.zeros(3)
    for _ in range(2):
        assert hopper.take(offer_of(runtime, RIGHT), rival, out)
    assert out.tolist() == [2, 2, 2]
    assert runtime.checked == ["twice of 3"]


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        (WRONG, "4.9"),
        (nvrtc.CompileError("line 3: no such thing"), "line 3: no such thing"),
        (driver.DriverError("CUDA_ERROR_INVALID_VALUE"), "CUDA_ERROR_INVALID_VALUE"),
    ],
)
def test_a_kernel_that_fails_is_left_out_with_one_warning(
    outcome: Report | Exception, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    runtime, out = Noting(), torch.zeros(3)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert not hopper.take(offer_of(runtime, outcome), rival, out)
    assert out.tolist() == [0, 0, 0]
    assert len(caplog.records) == 1
    assert said in caplog.text
    assert "twice" in caplog.text
    with hopper.emulated(runtime):
        assert any(said in line for line in hopper.failures(torch.device("cpu")))


def test_a_slower_kernel_leaves_the_shape_to_its_rival(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime, out = Noting(), torch.zeros(3)
    asked: list[str] = []
    monkeypatch.setattr(hopper, "_slower", lambda offer, rival, out: [asked.append(offer.what), True][1])
    for _ in range(2):
        assert not hopper.take(offer_of(runtime, RIGHT), rival, out)
    assert asked == ["twice of 3"]
    with hopper.emulated(runtime):
        assert hopper.choices(torch.device("cpu")) == {"twice of 3": "triton"}
    with kernels.only("sm90"):
        assert hopper.take(offer_of(runtime, RIGHT), rival, out)


def test_only_leaves_others_out() -> None:
    for implementation in ("triton", "reference"):
        with kernels.only(implementation):
            assert not hopper.take(offer_of(Noting(), RIGHT), rival, torch.zeros(3))
    assert kernels.forced() is None


def test_an_error_on_the_device_names_the_op_and_the_shape() -> None:
    runtime = Noting()
    runtime.error = driver.DriverError("twice of 3: CUDA_ERROR_ILLEGAL_ADDRESS")
    with pytest.raises(driver.DriverError, match="twice of 3"):
        hopper.take(offer_of(runtime, RIGHT), rival, torch.zeros(3))


def arguments(n: int, h: int, w: int, outputs: int = 64) -> dict[str, Any]:
    draw = kernels.load("conv3x3").CASES[0].make.__globals__["Draw"]("cpu", torch.float16)
    return {"x": draw.normal(n, h, w, 64), "weight": draw.weight(9, 64, outputs), "bias": draw.vector(outputs)}


def test_what_will_be_wanted_is_compiled_ahead_and_not_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Noting()
    monkeypatch.setattr(sm90, "_probe", lambda _: [0, 0, 0])
    with hopper.emulated(runtime):
        hopper.prepare(torch.device("cpu"), lambda: kernels.load("conv3x3").run(**arguments(1, 4, 8)))
    assert [source.file for source in runtime.prepared] == ["conv3x3/sm90.cu"]
    assert runtime.launched == []


@pytest.mark.parametrize(
    ("wrong", "layout"),
    [([0, 0, 0], "SHIFTED"), ([7, 0, 0], "FLAT"), ([7, 7, 0], "BOXES"), ([7, 7, 7], None)],
)
def test_the_first_layout_that_is_read_rightly_is_taken(
    wrong: list[int], layout: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = Noting()
    monkeypatch.setattr(sm90, "_probe", lambda _: wrong)
    with hopper.emulated(runtime):
        call = arguments(1, 4, 8)
        offered = sm90.offer("conv3x3", **call, slopes=None, residual=None, out=torch.empty_like(call["x"]))
    if layout is None:
        assert isinstance(offered, str)
        assert "layout" in offered
    else:
        assert isinstance(offered, hopper.Offer)
        assert sm90.Layout[layout].value in offered.what


def test_what_the_kernel_does_not_cover_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sm90, "_probe", lambda _: [0, 0, 0])
    call = arguments(1, 4, 8)
    rest: dict[str, Any] = {"slopes": None, "residual": None, "out": torch.empty_like(call["x"])}
    assert "Hopper" in str(sm90.offer("conv3x3", **call, **rest))
    with hopper.emulated(Noting()):
        wide = {name: tensor.float() for name, tensor in call.items()}
        assert "float32" in str(sm90.offer("conv3x3", **wide, **rest))
        assert "64" in str(sm90.offer("conv3x3", **{**call, "weight": call["weight"][:, :48]}, **rest))
        memory = torch.empty(call["x"].numel() + 1, dtype=torch.float16)
        assert "16 bytes" in str(sm90.offer("conv3x3", **{**call, "x": memory[1:].view_as(call["x"])}, **rest))


def test_weights_are_packed_once_and_again_after_they_change() -> None:
    weight, packs = torch.ones(2, 3), []

    def pack(weight: Tensor) -> Tensor:
        packs.append(weight.clone())
        return weight.t()

    for _ in range(2):
        assert hopper.packed(weight, pack).tolist() == weight.t().tolist()
    assert len(packs) == 1
    weight.mul_(3)
    assert hopper.packed(weight, pack).tolist() == weight.t().tolist()
    assert len(packs) == 2
    known = len(hopper._packed)
    del weight
    gc.collect()
    assert len(hopper._packed) < known


def test_a_written_inference_tensor_is_never_taken_for_what_it_was() -> None:
    with torch.inference_mode():
        weight = torch.ones(2)
        hopper.packed(weight, torch.Tensor.double)
        weight.add_(1)
        assert hopper.packed(weight, torch.Tensor.double).tolist() == [2, 2]


@given(
    n=st.integers(1, 4),
    h=st.integers(1, 2000),
    w=st.integers(1, 2000),
    blocks=st.integers(1, 200),
    layout=st.sampled_from(sm90.Layout),
)
def test_no_other_height_ends_sooner(n: int, h: int, w: int, blocks: int, layout: sm90.Layout) -> None:
    heights = sm90.heights(layout)
    tile = sm90.Tile(layout, heights[0])

    def clocks(rows: int) -> int:
        tiles = n * -(-h // rows) * -(-w // tile.columns)
        return -(-tiles // min(tiles, blocks)) * (hopper.clocks(rows, tile.computed) * 36 + hopper._TURN_CLOCKS)

    rows = hopper.tile_rows(n, h, w, tile.columns, tile.computed, blocks, heights, 36)
    assert rows in heights
    # The epilogue counts too, but never for more than the largest tile's.
    assert clocks(rows) <= min(map(clocks, heights)) + 8 * max(heights)


@pytest.mark.parametrize(
    ("h", "w", "waste"), [(270, 480, 1.03), (540, 960, 1.05), (1080, 1920, 1.03), (360, 640, 1.06), (180, 320, 1.08)]
)
def test_the_last_wave_of_a_usual_frame_is_nearly_full(h: int, w: int, waste: float) -> None:
    rows = hopper.tile_rows(1, h, w, 8, 8, 132, sm90.heights(sm90.Layout.SHIFTED), 36)
    tiles = -(-h // rows) * -(-w // 8)
    assert hopper.waves(tiles, 132) * 132 * rows * 8 <= waste * h * w


def test_tiles_are_as_tall_as_registers_and_shared_memory_allow() -> None:
    assert sm90.heights(sm90.Layout.SHIFTED) == tuple(range(2, 33, 2))
    assert sm90.heights(sm90.Layout.FLAT) == tuple(range(1, 9))
    assert sm90.heights(sm90.Layout.BOXES) == tuple(range(2, 17, 2))


def test_the_registry_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert list(kernels.implementations("conv3x3", cpu)) == ["sm90", "triton", "reference"]
    assert "Hopper" in str(kernels.implementations("conv3x3", cpu)["sm90"])
    assert "sm90" not in kernels.implementations("frame_input", cpu)
    monkeypatch.setattr(hopper, "architecture", lambda _: 80)
    assert "sm_80" in str(hopper.why_not(torch.device("cuda")))
    monkeypatch.setattr(hopper, "architecture", lambda _: 90)
    monkeypatch.setattr(driver, "why_not", lambda: ("no driver", "install one"))
    assert hopper.why_not(torch.device("cuda")) == ("no driver", "install one")


def test_pretending_changes_how_many_blocks_run() -> None:
    with launch.pretend(1):
        assert hopper.processors(Noting()) == 1
    assert hopper.processors(Noting()) == 132
