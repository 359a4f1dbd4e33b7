"""The degradations against literal loops over their definitions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from srgan_fast.errors import ShapeError
from srgan_fast.resize import gaussian_down, imresize_down, imresize_up, nearest_up


def cubic(x: float) -> float:
    """Keys' kernel with a = -0.5."""
    x = abs(x)
    if x <= 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def literal_pass(image: np.ndarray, factor: float) -> np.ndarray:
    """One pass of imresize along the first axis: weights, clamped indices, rounding half up."""
    length = image.shape[0]
    out_length = round(length * factor)
    stretch = max(1.0, 1 / factor)
    out = np.zeros((out_length, *image.shape[1:]))
    for i in range(out_length):
        centre = (i + 0.5) / factor - 0.5
        taps = range(int(np.floor(centre - 2 * stretch)), int(np.ceil(centre + 2 * stretch)) + 1)
        weights = np.array([cubic((t - centre) / stretch) for t in taps])
        rows = np.array([image[min(max(t, 0), length - 1)] for t in taps], dtype=float)
        out[i] = np.tensordot(weights / weights.sum(), rows, axes=1)
    return np.clip(np.floor(np.round(out, 6) + 0.5), 0, 255)  # ties exact, as their sums of few bits are


def literal(image: np.ndarray, factor: float) -> np.ndarray:
    rows_first = literal_pass(image, factor)
    return literal_pass(rows_first.transpose(1, 0, 2), factor).transpose(1, 0, 2).astype(np.uint8)


def to_tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 9), scale=st.sampled_from([2, 3, 4, 8]), seed=st.integers(0, 999))
def test_imresize_is_the_definition(rows: int, columns: int, scale: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    hr = rng.integers(0, 256, (rows * scale, columns * scale, 3), dtype=np.uint8)
    down = imresize_down(to_tensor(hr), scale).permute(1, 2, 0).numpy()
    assert np.abs(down.astype(int) - literal(hr, 1 / scale)).max() <= 1
    assert (down != literal(hr, 1 / scale)).mean() < 0.02 or down.size < 200
    lr = rng.integers(0, 256, (rows, columns, 3), dtype=np.uint8)
    up = imresize_up(to_tensor(lr), scale).permute(1, 2, 0).numpy()
    assert np.abs(up.astype(int) - literal(lr, scale)).max() <= 1


def test_matlab_lr_files_are_identical(shared_data: Path) -> None:
    for hr_path in sorted((shared_data / "Set5").glob("*.png")):
        hr = np.array(Image.open(hr_path).convert("RGB"))
        hr = hr[: hr.shape[0] // 4 * 4, : hr.shape[1] // 4 * 4]
        lr = np.array(Image.open(shared_data / "Set5_LRx4_matlab" / f"{hr_path.stem}_SRF_4_LR.png").convert("RGB"))
        assert torch.equal(imresize_down(to_tensor(hr), 4), to_tensor(lr))


def test_batches_equal_single_images() -> None:
    batch = torch.randint(0, 256, (3, 3, 16, 24), dtype=torch.uint8)
    for one, image in zip(imresize_down(batch, 4), batch, strict=True):
        assert torch.equal(one, imresize_down(image, 4))


def test_constants_stay() -> None:
    grey = torch.full((3, 16, 16), 77, dtype=torch.uint8)
    for small in (imresize_down(grey, 4), gaussian_down(grey, 4, 1.6), imresize_up(grey, 4), nearest_up(grey, 4)):
        assert (small == 77).all()


def test_a_gaussian_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its way to a GPU is one that the host waits for."""
    image = torch.arange(192, dtype=torch.uint8).view(3, 8, 8)
    first = gaussian_down(image, 2, 0.75)
    monkeypatch.setattr(torch, "exp", None)
    assert torch.equal(gaussian_down(image, 2, 0.75), first)


def test_gaussian_is_the_definition() -> None:
    hr = torch.randint(0, 256, (1, 12, 10), dtype=torch.uint8)
    scale, sigma = 2, 0.8
    got = gaussian_down(hr, scale, sigma)
    reach = int(np.ceil(3 * sigma / scale)) * scale
    for y in range(6):
        for x in range(5):
            total = weight = 0.0
            for dy in range(-reach, scale + reach):
                for dx in range(-reach, scale + reach):
                    w = np.exp(-((dy - 0.5) ** 2 + (dx - 0.5) ** 2) / (2 * sigma**2))
                    total += w * float(hr[0, min(max(2 * y + dy, 0), 11), min(max(2 * x + dx, 0), 9)])
                    weight += w
            assert abs(float(got[0, y, x]) - total / weight) <= 0.5001


@pytest.mark.parametrize("bad", [torch.zeros(3, 8, 8), torch.zeros(3, 9, 8, dtype=torch.uint8)])
def test_what_does_not_fit_is_refused(bad: torch.Tensor) -> None:
    for degrade in (lambda x: imresize_down(x, 4), lambda x: gaussian_down(x, 4, 1.0)):
        with pytest.raises(ShapeError, match="expected"):
            degrade(bad)


@pytest.mark.gpu
@pytest.mark.parametrize("scale", [2, 4])
def test_a_gpu_shrinks_to_the_same_bits(scale: int) -> None:
    """Weights of few bits: no order of the sums rounds anything."""
    generator = torch.Generator().manual_seed(scale)
    hr = torch.randint(0, 256, (2, 3, 12 * scale, 9 * scale), dtype=torch.uint8, generator=generator)
    assert torch.equal(imresize_down(hr.cuda(), scale).cpu(), imresize_down(hr, scale))
