"""Finding int8 scales on images, what is refused, and the emulated precisions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_fused import frames, model_of
from test_int8 import Run, scaled, through_program

from srgan_fast import kernels, weights
from srgan_fast.calibration import quantised_layers
from srgan_fast.errors import BackendUnavailable, InputError, ParityError, UsageError, WeightsError
from srgan_fast.evaluate.calibrate import calibrate
from srgan_fast.evaluate.emulate import PRECISIONS, compare, emulated
from srgan_fast.kernels import parity
from srgan_fast.model import Generator, GeneratorConfig, MSRResNet, MSRResNetConfig
from srgan_fast.resize import imresize_down
from srgan_fast.rewrite import folded


@pytest.fixture
def small(tmp_path: Path) -> weights.Model:
    return model_of(Generator(GeneratorConfig(blocks=2, width=16)), tmp_path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, size in enumerate(((40, 44), (48, 40))):
        coarse = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


# --- calibration --------------------------------------------------------------------------------------------------


def test_calibration_finds_scales_and_says_how(small: weights.Model, photos: Path) -> None:
    loud = calibrate(small, photos, percentile=100, limit_db=50)
    usual = calibrate(small, photos, percentile=90, limit_db=50)
    assert list(loud.scales) == list(quantised_layers(small.network))
    assert all(0 < usual.scales[name] < loud.scales[name] for name in loud.scales)
    assert loud.images == 2
    assert loud.weights == small.info.digest
    assert loud == calibrate(small, photos, percentile=100, limit_db=50)
    # The largest value is 127 steps: seen on the network itself.
    seen: list[float] = []
    network = folded(small.network)
    network.skip[0].register_forward_pre_hook(lambda _, args: seen.append(float(args[0].abs().max())))
    for path in sorted(photos.iterdir()):
        hr = torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1)
        network(imresize_down(hr, 4)[None].float() / 255)
    assert loud.scales["skip.0"] == pytest.approx(max(seen) / 127, rel=1e-6)


def test_a_calibration_that_loses_too_much_is_refused(
    small: weights.Model, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = [{"plain_psnr_db": 30.0, "psnr_db": 29.7}, {"plain_psnr_db": 40.0, "psnr_db": 40.0}]
    monkeypatch.setattr("srgan_fast.evaluate.calibrate.compare", lambda *_: {"int8": scores})
    with pytest.raises(ParityError, match=r"lose at most 0\.1 dB, got 0\.15 dB on 2 images .*nothing is written"):
        calibrate(small, photos)
    found = calibrate(small, photos, limit_db=0.2)
    assert (found.psnr_db, found.limit_db) == (35.0, 0.2)
    assert found.drop_db == pytest.approx(0.15)
    scores[0]["psnr_db"] = float("nan")
    with pytest.raises(ParityError):
        calibrate(small, photos, limit_db=50)


@pytest.mark.parametrize("percentile", [49.0, 100.5, float("nan")])
def test_a_percentile_that_is_none(small: weights.Model, photos: Path, percentile: float) -> None:
    with pytest.raises(UsageError, match="percentile"):
        calibrate(small, photos, percentile=percentile)
    with pytest.raises(UsageError, match="limit"):
        calibrate(small, photos, limit_db=-percentile)


@pytest.mark.parametrize(
    "network",
    [
        lambda: Generator(GeneratorConfig(blocks=1, width=8)),
        lambda: MSRResNet(MSRResNetConfig(blocks=1, width=16)),
        lambda: Generator(GeneratorConfig(blocks=1, width=16, norm="instance")),
        lambda: Generator(GeneratorConfig(blocks=1, width=16, separable=True)),
    ],
)
def test_networks_without_int8_kernels_are_refused(
    network: Callable[[], torch.nn.Module], tmp_path: Path, photos: Path
) -> None:
    with pytest.raises(UsageError, match="int8 does not cover"):
        calibrate(model_of(network(), tmp_path), photos, limit_db=50)


def test_images_that_cannot_be_used(small: weights.Model, tmp_path: Path, photos: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="expected images"):
        calibrate(small, empty)
    with pytest.raises(InputError, match="expected a folder"):
        calibrate(small, tmp_path / "none")
    (photos / "broken.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"broken\.png"):
        calibrate(small, photos)


def test_calibrate_command(small: weights.Model, photos: Path, tmp_path: Path, run: Run) -> None:
    model, out = tmp_path / "network.safetensors", tmp_path / "out.safetensors"
    code, said, _ = run("calibrate", model, "--images", photos, "--out", out, "--percentile", "amax", "--limit-db", 50)
    assert code == 0
    assert "2 images, 7 scales at the largest value" in said
    again = weights.load(out)
    assert again.calibration is not None
    assert again.info == small.info
    before = out.read_bytes()
    for source, words, expected, message in (
        # Half of the values clipped.
        ("srresnet_x4", ("--percentile", 50), 6, "nothing is written"),
        (model, ("--percentile", "most"), 2, "expected --percentile like 99.99, or amax"),
        (model, ("--images", tmp_path / "none"), 2, "expected a folder"),
        (tmp_path / "none.safetensors", (), 2, "expected a weights file"),
    ):
        code, _, err = run("calibrate", source, "--images", photos, "--out", out, *words)
        assert (code, message in err) == (expected, True), err
        assert out.read_bytes() == before
    for target, expected in ((model, 2), (tmp_path / "none" / "x.safetensors", 4), (tmp_path / "x.pth", 2)):
        code, _, err = run("calibrate", model, "--images", photos, "--out", target, "--limit-db", 50)
        assert code == expected, err
    code, _, err = run("calibrate", model, "--images", photos, "--out", model, "--limit-db", 50, "--overwrite")
    assert code == 0, err
    assert weights.load(model).calibration is not None
    assert not list(tmp_path.glob("*.tmp*"))


def test_upscaling_in_int8_without_a_gpu_says_why(photos: Path, tmp_path: Path, run: Run) -> None:
    if torch.cuda.is_available() or kernels.interpreting():
        pytest.skip("the kernels run here")
    code, _, err = run("upscale", photos / "0.png", tmp_path / "x.png", "--precision", "int8")
    assert code == 3
    assert "int8" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "x.png").exists()


# --- emulation ----------------------------------------------------------------------------------------------------


def test_emulated_precisions_are_ordered(photos: Path) -> None:
    model = weights.load("srresnet_x4")
    found = compare(model, photos)
    assert list(found) == list(PRECISIONS)
    errors = {name: sum(each["mse"] for each in entries) for name, entries in found.items()}
    assert errors["fp32"] == 0 < errors["fp16"] < errors["bf16"] < errors["fp8"]
    assert errors["fp16"] < errors["int8"] < errors["fp8"]
    for entry in found["fp16"]:
        assert entry["max_error"] <= parity.GATES["fp16"].max_error


def test_emulated_int8_is_the_program(small: weights.Model) -> None:
    """But for the ends in float16, whose sums are float32 in the one and the library's in the other."""
    model = scaled(small)
    lr = frames(1, 8, 9)
    difference = emulated(model, "int8")(lr) * 255 - through_program(model, lr).float()
    # The pixels are rounded: that alone is half a level, and a quarter on the mean.
    assert difference.abs().max() <= 1.5
    assert difference.abs().mean() < 0.35


def test_emulation_refuses_what_it_does_not_know(small: weights.Model) -> None:
    with pytest.raises(UsageError, match="expected a precision of fp32, fp16, bf16, fp8, int8, got 'int4'"):
        emulated(small, "int4")
    with pytest.raises(BackendUnavailable, match="no int8 scales"):
        emulated(small, "int8")


@pytest.mark.slow
def test_int8_loses_little_on_set5(shared_data: Path) -> None:
    found = compare(weights.load("srresnet_x4"), shared_data / "Set5", shared_data / "Set5_LRx4_matlab", ("int8",))
    entries = found["int8"]
    drop_db = sum(each["plain_psnr_db"] - each["psnr_db"] for each in entries) / len(entries)
    assert drop_db <= 0.1
    gate = parity.GATES["int8"]
    assert all(each["max_error"] <= gate.max_error for each in entries)


def test_the_cure_for_scales_of_other_weights_is_not_the_file_itself(small: weights.Model, tmp_path: Path) -> None:
    from test_int8 import edited

    path = tmp_path / "whole.safetensors"
    weights.save_model(path, scaled(small))
    with pytest.raises(WeightsError, match="on the weights that it was made from"):
        weights.load(edited(path, lambda content: content.update(weights="0")))


def test_int8_on_a_cpu_is_refused_in_one_line(photos: Path, tmp_path: Path, run: Run) -> None:
    code, _, said = run("upscale", photos / "0.png", tmp_path / "out.png", "--precision", "int8", "--device", "cpu")
    assert code == 3
    assert len(said.splitlines()) == 1
    assert "int8 is for the backend fused" in said


@pytest.mark.filterwarnings("error")
def test_an_image_of_one_column_gives_no_warning(tmp_path: Path) -> None:
    from srgan_fast.image import read_rgb

    Image.new("RGB", (1, 1)).save(tmp_path / "one.png")
    assert read_rgb(tmp_path / "one.png").shape == (3, 1, 1)
