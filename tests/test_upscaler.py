"""Upscaler: what goes in comes out, and no cut changes a pixel."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from srgan_fast import Upscaler, weights
from srgan_fast.backends.eager import quantise
from srgan_fast.errors import BackendUnavailable, MemoryBudgetError, ShapeError, UsageError
from srgan_fast.model import Generator, GeneratorConfig
from srgan_fast.tiling import Footprint, plan, tiles
from srgan_fast.upscaler import resolved


def tiny_model(folder: Any, **config: Any) -> weights.Model:
    """A small generator with statistics that are not those of a fresh network."""
    torch.manual_seed(0)
    network = Generator(GeneratorConfig(**{"blocks": 2, "width": 8, "kernel": 9, **config}))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.2, 0.2)
    path = folder / "tiny.safetensors"
    weights.save(path, network, name="tiny", recipe={})
    return weights.load(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> weights.Model:
    return tiny_model(tmp_path_factory.mktemp("model"))


def frame(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_equals_the_plain_module(model: weights.Model) -> None:
    lr = frame(13, 17)
    with torch.inference_mode():
        plain = model.network(torch.from_numpy(lr).permute(2, 0, 1)[None].float() / 255)[0]
    want = ((plain + 1) / 2 * 255).clamp(0, 255).add(0.5).floor().permute(1, 2, 0).numpy().astype(np.uint8)
    got = Upscaler(model, precision="fp32")(lr)
    # Folding moves sums by a few units in the last place: at most one level, and only on ties.
    difference = np.abs(want.astype(int) - got.astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


# PyTorch hands a float32 convolution to oneDNN only above this many inputs; smaller ones sum in another order.
ONEDNN_INPUTS = 20480


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> weights.Model:
    """As wide as the paper's network, so that most windows are above the limit."""
    return tiny_model(tmp_path_factory.mktemp("wide"), blocks=1, width=64)


def equal(cut: torch.Tensor, whole: torch.Tensor, exact: bool) -> bool:
    """Bit for bit, or 1e-5 where the library takes another convolution for a shape."""
    return torch.equal(cut, whole) if exact else bool((cut - whole).abs().max() <= 1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@settings(max_examples=15, deadline=None)
@given(height=st.integers(1, 70), width=st.integers(1, 70), tile=st.integers(5, 40), seed=st.integers(0, 99))
def test_tiled_equals_untiled(
    wide: weights.Model, precision: str, height: int, width: int, tile: int, seed: int
) -> None:
    lr = torch.from_numpy(frame(height, width, seed)).permute(2, 0, 1).float() / 255
    whole = Upscaler(wide, backend="eager", precision=precision, device="cpu")(lr, layout="CHW")
    cut = Upscaler(wide, backend="eager", precision=precision, device="cpu", tile=tile)
    windows = [each.read for each in tiles(height, width, tile, cut._backend.footprint.radius or 0)]
    smallest = min((y1 - y0) * (x1 - x0) for y0, y1, x0, x1 in windows)
    exact = precision == "bf16" or smallest * 64 > ONEDNN_INPUTS
    assert equal(cut(lr, layout="CHW"), whole, exact)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("shape", [(1, 1), (5, 33), (61, 47), (23, 90)])
def test_bands_equal_the_whole(wide: weights.Model, precision: str, shape: tuple[int, int]) -> None:
    upscaler = Upscaler(wide, backend="eager", precision=precision, device="cpu")
    lr = torch.rand(1, *shape, 3)
    outs = []
    for band in (1000, 16, 7, 1):
        out = torch.empty(1, shape[0] * 4, shape[1] * 4, 3)
        upscaler._backend.run(lr, out, band)
        outs.append(out)
    halo = upscaler._backend.footprint.tail_radius
    for band, other in zip((16, 7, 1), outs[1:], strict=True):
        rows = min(shape[0], (shape[0] % band or band) + halo)  # the last band, which has a halo on one side only
        assert equal(other, outs[0], precision == "bf16" or rows * shape[1] * 64 > ONEDNN_INPUTS)


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 90), width=st.integers(1, 90), size=st.integers(1, 50), halo=st.integers(0, 12))
def test_tiles_cover_once(height: int, width: int, size: int, halo: int) -> None:
    seen = np.zeros((height, width), int)
    for tile in tiles(height, width, size, halo):
        top, bottom, left, right = tile.keep
        seen[top:bottom, left:right] += 1
        y0, y1, x0, x1 = tile.read
        assert y0 == max(0, top - halo)
        assert y1 == min(height, bottom + halo)
        assert x0 == max(0, left - halo)
        assert x1 == min(width, right + halo)
    assert (seen == 1).all()


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    rows=st.integers(36, 120),
    columns=st.integers(36, 120),
    pixels=st.integers(36 * 36, 8000),
)
def test_windows_keep_to_what_a_backend_takes(height: int, width: int, rows: int, columns: int, pixels: int) -> None:
    cost = Footprint(1.0, 0.0, 0.0, radius=10, tail_radius=0, pixels=pixels, most=(1, rows, columns))
    cut = plan(cost, height, width, tile=None, budget_bytes=None)
    if height <= rows and width <= columns and height * width <= pixels:
        assert cut.tile is None
        return
    assert cut.tile is not None
    for tile in tiles(height, width, cut.tile, 10):
        top, bottom, left, right = tile.read
        assert bottom - top <= rows
        assert right - left <= columns
        assert (bottom - top) * (right - left) <= pixels


def test_what_a_backend_takes_at_no_size_is_said() -> None:
    cost = Footprint(1.0, 0.0, 0.0, radius=10, tail_radius=0, most=(1, 30, 40))
    assert plan(cost, 30, 40, tile=None, budget_bytes=None).tile is None
    with pytest.raises(BackendUnavailable, match="smallest tile is 34x31"):
        plan(cost, 31, 40, tile=None, budget_bytes=None)
    with pytest.raises(UsageError, match=r"one of 20 is 38x39 pixels.*leave --tile out"):
        plan(cost, 39, 90, tile=20, budget_bytes=None)
    with pytest.raises(BackendUnavailable, match="cannot be tiled, and 41x30"):
        plan(replace(cost, radius=None), 30, 41, tile=None, budget_bytes=None)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("batch", [None, 1, 2])
def test_what_goes_in_comes_out(model: weights.Model, dtype: Any, batch: int | None) -> None:
    upscaler = Upscaler(model)
    integer = np.issubdtype(dtype, np.integer)
    shape = (6, 5, 3) if integer else (3, 6, 5)
    larger = (24, 20, 3) if integer else (3, 24, 20)
    if batch is not None:
        shape, larger = (batch, *shape), (batch, *larger)
    frames = (np.random.default_rng(0).random(shape) * (np.iinfo(dtype).max if integer else 1)).astype(dtype)
    out = upscaler(frames)
    assert out.shape == larger
    assert out.dtype == dtype
    tensor = upscaler(torch.from_numpy(frames))
    assert isinstance(tensor, torch.Tensor)
    assert np.array_equal(tensor.numpy(), out)


def test_a_frame_at_a_time_within_the_budget_of_all(model: weights.Model) -> None:
    upscaler = Upscaler(model, memory="8G")
    one, many = (upscaler.plan(40, 50, count=count) for count in (1, 3))
    assert one == many
    with pytest.raises(MemoryBudgetError):
        upscaler.plan(400, 500, count=10_000)


def test_layouts_and_colours_agree(model: weights.Model) -> None:
    upscaler = Upscaler(model)
    hwc = frame(9, 11)
    want = upscaler(hwc)
    assert np.array_equal(upscaler(hwc[..., ::-1], color="bgr")[..., ::-1], want)
    assert np.array_equal(upscaler(hwc.transpose(2, 0, 1), layout="CHW").transpose(1, 2, 0), want)
    assert np.array_equal(upscaler(np.stack([hwc, hwc]))[1], want)
    frozen = hwc.copy()
    frozen.flags.writeable = False
    assert np.array_equal(upscaler(frozen), want)
    assert np.array_equal(upscaler(np.asfortranarray(hwc)), want)
    for deep in (hwc.astype(">u2") * 257, hwc.astype(">f4").transpose(2, 0, 1) / 255):
        swapped = upscaler(deep)
        assert swapped.dtype == deep.dtype
        assert np.array_equal(swapped, upscaler(deep.astype(deep.dtype.newbyteorder("="))))


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((3, 4, 3), np.uint8),  # fits both readings
        np.zeros((3, 4, 5), np.uint8),  # integers, channels first
        np.zeros((4, 5, 3), np.float32),  # floats, channels last
        np.zeros((4, 5), np.uint8),
        np.zeros((4, 5, 4), np.uint8),
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((4, 5, 3), np.int32),
        np.zeros((4, 5, 3), complex),
        "a picture",
    ],
)
def test_nothing_is_guessed(model: weights.Model, frames: Any) -> None:
    with pytest.raises(ShapeError):
        Upscaler(model)(frames)


def test_quantisation_rounds_half_up_and_clamps() -> None:
    v = torch.tensor([-1.0, 0.0, 0.5 / 255, 1.5 / 255, 1.0, 7.0])
    assert quantise(v.clone(), torch.uint8).tolist() == [0, 0, 1, 2, 255, 255]
    assert quantise(v.clone(), torch.uint16)[-1].item() == 65535


def test_choices_that_cannot_be(model: weights.Model) -> None:
    with pytest.raises(UsageError, match="backend"):
        Upscaler(model, backend="magic")
    with pytest.raises(UsageError, match="precision"):
        Upscaler(model, precision="fp64")
    with pytest.raises(BackendUnavailable, match="fp16"):
        Upscaler(model, precision="fp16", device="cpu")
    with pytest.raises(UsageError, match="device"):
        Upscaler(model, device="tpu")
    with pytest.raises(UsageError, match="tile"):
        Upscaler(model, tile=0)(frame(8, 8))
    with pytest.raises(MemoryBudgetError, match="--memory"):
        Upscaler(model, memory="1K")(frame(64, 64))


def test_devices_by_number(model: weights.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    upscaler = Upscaler(model, backend="eager", device="cpu:0")
    assert upscaler.device == "cpu"
    assert upscaler(frame(5, 4)).shape == (20, 16, 3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [resolved(device) for device in ("cuda", "cuda:1")] == ["cuda", "cuda:1"]
    with pytest.raises(BackendUnavailable, match="torch sees 2 GPUs"):
        resolved("cuda:2")


def test_instance_norm_is_never_tiled(tmp_path: Any) -> None:
    upscaler = Upscaler(tiny_model(tmp_path, norm="instance"), tile=8)
    with pytest.raises(UsageError, match="whole frame"):
        upscaler(frame(20, 20))
    assert upscaler(frame(8, 8)).shape == (32, 32, 3)


def test_instance_norm_is_banded_with_a_halo(tmp_path: Any) -> None:
    """It is the trunk that looks at the whole frame, and that is not cut: the tail's context is the same as ever."""
    backend = Upscaler(tiny_model(tmp_path, norm="instance"), backend="eager", device="cpu")._backend
    lr, (whole, banded) = torch.rand(1, 20, 9, 3), (torch.empty(1, 80, 36, 3) for _ in range(2))
    backend.run(lr, whole, 20)
    backend.run(lr, banded, 6)
    assert equal(banded, whole, exact=False)


@pytest.mark.parametrize("scale", [2, 8])
def test_other_scales(tmp_path: Any, scale: int) -> None:
    assert Upscaler(tiny_model(tmp_path, scale=scale))(frame(5, 7)).shape == (5 * scale, 7 * scale, 3)
