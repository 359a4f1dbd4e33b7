"""Training: losses are the paper's formulas, a resumed run is the uninterrupted one, bad ends lose nothing."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from srgan_fast import weights
from srgan_fast.errors import CheckpointError, InputError, Interrupted, OutputError, TrainingError, UsageError
from srgan_fast.features import VGG19, SqueezeNet, load_squeezenet, load_vgg19
from srgan_fast.model import Discriminator, Generator, GeneratorConfig
from srgan_fast.train import board, checkpoint, losses
from srgan_fast.train import trainer as trainer_module
from srgan_fast.train.config import PRESETS, TrainConfig
from srgan_fast.train.init import interpolating_init, normalised
from srgan_fast.train.step import EagerStep, learning_rate
from srgan_fast.train.trainer import Trainer

TINY = TrainConfig(generator=GeneratorConfig(blocks=1, width=4), crop=32, batch=2, steps=60, precision="fp32")


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _small_discriminator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module, "Discriminator", lambda: Discriminator(width=4))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for index in range(3):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 9, 3), dtype=np.uint8))
        coarse.resize((60 + index, 48)).save(folder / f"{index}.png")
    Image.new("RGB", (20, 90)).save(folder / "narrow.png")
    (folder / "broken.png").write_bytes(b"\x89PNG nonsense")
    return folder


def literal_vgg_loss(features: VGG19, sr: torch.Tensor, hr: torch.Tensor) -> float:
    """Equation 5 in loops: sum over channels, mean over positions, mean over the batch, maps scaled by 1/12.75."""
    total = 0.0
    a, b = features(hr) / 12.75, features(sr) / 12.75
    n, channels, height, width = a.shape
    for image in range(n):
        for y in range(height):
            for x in range(width):
                for c in range(channels):
                    total += float(a[image, c, y, x] - b[image, c, y, x]) ** 2 / (height * width)
    return total / n


def test_vgg_loss_is_the_formula() -> None:
    torch.manual_seed(0)
    features = VGG19(1, 2)
    sr, hr = torch.rand(2, 3, 6, 5) * 2 - 1, torch.rand(2, 3, 6, 5) * 2 - 1
    want = literal_vgg_loss(features, sr, hr)
    assert math.isclose(float(losses.PerceptualLoss(features, "paper")(sr, hr)), want, rel_tol=1e-4)
    assert math.isclose(float(losses.PerceptualLoss(features, "mean")(sr, hr)), want / 64, rel_tol=1e-4)


def test_mse_is_the_formula() -> None:
    sr, hr = torch.rand(2, 3, 4, 5), torch.rand(2, 3, 4, 5)
    total = 0.0
    for a, b in zip(sr.flatten().tolist(), hr.flatten().tolist(), strict=True):
        total += (a - b) ** 2
    assert math.isclose(float(losses.mse(sr, hr)), total / sr.numel(), rel_tol=1e-5)


def test_adversarial_losses_are_the_formulas() -> None:
    real, fake = torch.randn(5), torch.randn(5)
    d = [1 / (1 + math.exp(-x)) for x in real.tolist()]
    g = [1 / (1 + math.exp(-x)) for x in fake.tolist()]
    assert math.isclose(float(losses.adversarial(fake)), sum(-math.log(p) for p in g) / 5, rel_tol=1e-5)
    want = sum(-math.log(p) for p in d) / 5 + sum(-math.log(1 - p) for p in g) / 5
    assert math.isclose(float(losses.discriminator(real, fake)), want, rel_tol=1e-5)
    assert math.isfinite(float(losses.adversarial(torch.tensor([-1e4]))))


@pytest.mark.parametrize(("i", "j", "channels", "pools"), [(2, 2, 128, 1), (5, 4, 512, 4)])
def test_vgg_layers_lie_where_the_paper_says(i: int, j: int, channels: int, pools: int) -> None:
    network = VGG19(i, j)
    out = network(torch.zeros(1, 3, 32, 32))
    assert out.shape == (1, channels, 32 >> pools, 32 >> pools)
    assert (out >= 0).all()  # after the activation
    assert sum(isinstance(m, torch.nn.Conv2d) for m in network.features) == {2: 4, 5: 16}[i]


def test_vgg_input_conventions() -> None:
    seen: list[torch.Tensor] = []
    image = torch.tensor([1.0, 0.0, -1.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    for convention in ("torchvision", "caffe"):
        network = VGG19(1, 1, convention)
        network.features[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        network(image)
    want = [(1 - 0.485) / 0.229, (0.5 - 0.456) / 0.224, (0 - 0.406) / 0.225]
    assert torch.allclose(seen[0][0, :, 0, 0], torch.tensor(want))
    assert torch.allclose(seen[1][0, :, 0, 0], torch.tensor([0 - 103.939, 127.5 - 116.779, 255 - 123.68]), atol=1e-4)


def test_feature_weights_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--vgg-weights"):
        load_vgg19(5, 4, tmp_path / "none.pth", "torchvision")
    with pytest.raises(InputError, match="--squeezenet-weights"):
        load_squeezenet(None)


def test_squeezenet_input_is_that_of_caffe() -> None:
    network = SqueezeNet()
    seen: list[torch.Tensor] = []
    network.conv1.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    image = torch.tensor([1.0, 0.0, -1.0]).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    assert network(image).shape == (1, 512, 3, 3)
    assert torch.allclose(seen[0][0, :, 0, 0], torch.tensor([0 - 104.0, 127.5 - 117.0, 255 - 123.0]))


def test_squeezenet_sees_alike_as_alike(shared_data: Path) -> None:
    loss = losses.PerceptualLoss(load_squeezenet(shared_data / "weights" / "squeezenet_v1.0_fp16.pt"), "paper")
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    near, far = image + 0.01 * torch.randn_like(image), torch.rand(1, 3, 64, 64) * 2 - 1
    assert 0 < float(loss(near, image)) < float(loss(far, image))


def test_discriminator_takes_any_crop() -> None:
    network = Discriminator(width=4)
    convs = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [c.out_channels // 4 for c in convs] == [1, 1, 2, 2, 4, 4, 8, 8]
    for size in (16, 96, 100):
        probability = network.probability(torch.rand(2, 3, size, size))
        assert probability.shape == (2,)
        assert ((probability > 0) & (probability < 1)).all()


def test_interpolating_init_starts_as_interpolation() -> None:
    torch.manual_seed(0)
    network = Generator(GeneratorConfig(blocks=3, width=16, norm="none"))
    interpolating_init(network)
    lr = torch.rand(1, 3, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    with torch.inference_mode():
        out = (network(lr) + 1) / 2
    want = torch.nn.functional.interpolate(lr, scale_factor=4, mode="bilinear")
    assert (out - want)[..., 12:-12, 12:-12].abs().mean() < 0.1


def test_the_rate_follows_the_plan() -> None:
    config = dataclasses.replace(TINY, steps=100, warmup=10, decay="cosine", learning_rate=1.0, final_learning_rate=0.1)
    rates = [learning_rate(config, step) for step in range(100)]
    assert rates[0] == 0.1
    assert max(rates) == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    srgan = PRESETS["paper-srgan-vgg54"]
    assert learning_rate(srgan, 99_999) == 1e-4
    assert learning_rate(srgan, 100_000) == 1e-5


def srgan_start(tmp_path: Path) -> tuple[TrainConfig, Path]:
    config = dataclasses.replace(TINY, stage="srgan", decay="drop", final_learning_rate=1e-5)
    start = tmp_path / "start.safetensors"
    torch.manual_seed(3)
    weights.save(start, Generator(config.generator), name="start", recipe={})
    return config, start


@pytest.mark.parametrize("stage", ["srresnet", "srgan"])
@pytest.mark.parametrize("stop", [1, 29, 30, 59])
def test_resumed_equals_uninterrupted(photos: Path, tmp_path: Path, stage: str, stop: int) -> None:
    config, initial = (TINY, None) if stage == "srresnet" else srgan_start(tmp_path)
    whole = Trainer(config, photos, tmp_path / "whole", initial=initial)
    whole.run()
    first = Trainer(config, photos, tmp_path / "parts", initial=initial)

    def interrupt(step: int, _: dict[str, float]) -> None:
        if step == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="--resume"):
        first.run(interrupt)
    torch.manual_seed(999)  # resuming must not lean on the process's random state
    second = Trainer(config, photos, tmp_path / "parts", resume=True, initial=initial)
    assert second.position == stop
    second.run()
    for part in ("generator", "average", "discriminator"):
        network = getattr(whole.step, part)
        if network is not None:
            for key, value in network.state_dict().items():
                assert torch.equal(value, getattr(second.step, part).state_dict()[key]), key
    assert weights.load(tmp_path / "whole" / "model.safetensors").info.digest == (
        weights.load(tmp_path / "parts" / "model.safetensors").info.digest
    )


@pytest.mark.slow
def test_the_real_network_resumes_to_the_bit(photos: Path, tmp_path: Path) -> None:
    """The paper's network for 300 steps with `make soak`, for 6 small ones otherwise; stopped twice, anywhere."""
    soak = os.environ.get("SRGAN_FAST_SOAK") == "1"
    if soak:
        torch.set_num_threads(2)  # the fixture sets it back
    steps = 300 if soak else 6
    config = dataclasses.replace(
        PRESETS["paper-srresnet-mse"], steps=steps, precision="fp32", crop=48, batch=16 if soak else 2
    )
    Trainer(config, photos, tmp_path / "whole").run()
    stops = sorted(np.random.default_rng().choice(np.arange(1, steps), 2, replace=False).tolist())
    for index, stop in enumerate([*stops, None]):
        run = Trainer(config, photos, tmp_path / "parts", resume=index > 0)
        if stop is None:
            run.run()
            continue
        with pytest.raises(Interrupted):
            run.run(lambda step, _, stop=stop: os.kill(os.getpid(), signal.SIGTERM) if step == stop else None)
    digests = [weights.load(tmp_path / part / "model.safetensors").info.digest for part in ("whole", "parts")]
    assert digests[0] == digests[1], f"stopped after {stops}"


def test_normalisation_added_changes_nothing_in_evaluation() -> None:
    torch.manual_seed(0)
    plain = Generator(GeneratorConfig(blocks=2, width=8, norm="none"))
    batches = [torch.rand(4, 3, 12, 12) for _ in range(3)]
    batched = normalised(plain, GeneratorConfig(blocks=2, width=8), batches)
    lr = torch.rand(1, 3, 9, 7)
    with torch.no_grad():
        assert (batched.eval()(lr) - plain.eval()(lr)).abs().max() < 1e-5
        # In training a batch is normalised by itself: near the same for a batch like those.
        assert (batched.train()(batches[0]) - plain(batches[0])).abs().mean() < 0.02


def test_srgan_starts_from_a_network_without_normalisation(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config, _ = srgan_start(tmp_path)
    start = tmp_path / "plain.safetensors"
    weights.save(start, Generator(dataclasses.replace(config.generator, norm="none")), name="plain", recipe={})
    config = dataclasses.replace(config, steps=2)
    path = Trainer(config, photos, tmp_path / "run", initial=start).run()
    assert "batch normalisation" in caplog.text
    recipe = weights.load(path).info.recipe
    assert recipe["initial"] == {"name": "plain", "digest": weights.load(start).info.digest}
    with pytest.raises(UsageError, match="--init"):
        Trainer(dataclasses.replace(config, generator=GeneratorConfig()), photos, tmp_path / "other", initial=start)


def test_a_resumed_decay_over_other_steps_says_so(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = dataclasses.replace(TINY, decay="cosine", steps=2)
    Trainer(config, photos, tmp_path / "run").run()
    Trainer(dataclasses.replace(config, steps=4), photos, tmp_path / "run", resume=True)
    assert "falls over 4 steps instead of 2" in caplog.text


def test_a_run_learns_and_tells(photos: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, steps=30, learning_rate=1e-2)
    trainer = Trainer(config, photos, tmp_path / "run", validation=photos, validate_every=10)
    path = trainer.run()
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    terms = [line["content"] for line in lines if "content" in line]
    assert len(terms) == 30
    assert sum(terms[-5:]) < 0.9 * sum(terms[:5])
    assert all("loader_s" in line for line in lines[1:])
    assert sum("val_psnr_db" in line for line in lines) == 3
    recipe = weights.load(path).info.recipe
    assert recipe["steps_done"] == 30
    assert recipe["terms"]["content"] > 0


@pytest.mark.parametrize(("after", "said"), [(3, "content loss is nan at step 3"), (4, "weights are not finite after")])
def test_a_run_that_diverges_keeps_a_good_checkpoint(photos: Path, tmp_path: Path, after: int, said: str) -> None:
    config = dataclasses.replace(TINY, steps=6)
    out = tmp_path / "run"
    trainer = Trainer(config, photos, out, save_every=2)

    def poison(step: int, _: dict[str, float]) -> None:
        if step == after:  # at 4 a save is due: the loss was finite, the weights no longer are
            next(trainer.step.generator.parameters()).data.fill_(math.nan)

    with pytest.raises(TrainingError, match=f"{said}.*last good checkpoint is of step 2"):
        trainer.run(poison)
    resumed = Trainer(config, photos, out, resume=True)
    assert resumed.position == 2
    assert resumed.step.is_finite()
    resumed.run()
    whole = Trainer(config, photos, tmp_path / "whole")
    whole.run()
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole.step.average.parameters(), resumed.step.average.parameters(), strict=True)
    )


def test_a_run_that_diverges_at_once_has_no_checkpoint(photos: Path, tmp_path: Path) -> None:
    trainer = Trainer(dataclasses.replace(TINY, learning_rate=1e38), photos, tmp_path / "run", save_every=1)
    with pytest.raises(TrainingError, match="no checkpoint was due before it"):
        trainer.run()
    assert checkpoint.checkpoints(tmp_path / "run") == []
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "run"
    Trainer(dataclasses.replace(TINY, steps=4), photos, out, save_every=2).run()
    newest = checkpoint.checkpoints(out)[-1]
    data = bytearray(newest.read_bytes())
    data[-100] ^= 1
    newest.write_bytes(bytes(data))
    assert Trainer(TINY, photos, out, resume=True).position == 2
    assert "damaged" in caplog.text


def test_another_run_cannot_be_resumed(photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "run"
    Trainer(dataclasses.replace(TINY, steps=1), photos, out).run()
    with pytest.raises(CheckpointError, match="batch"):
        Trainer(dataclasses.replace(TINY, batch=1), photos, out, resume=True)
    torch.set_num_threads(2)
    Trainer(TINY, photos, out, resume=True)
    assert "equal in value, not in bits" in caplog.text


def test_folders_that_do_not_do(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="32x32"):
        Trainer(TINY, tmp_path / "empty", tmp_path / "out")
    with pytest.raises(UsageError, match="existing folder"):
        Trainer(TINY, tmp_path / "nowhere", tmp_path / "out")
    Trainer(dataclasses.replace(TINY, steps=1), photos, tmp_path / "out").run()
    with pytest.raises(UsageError, match="--resume"):
        Trainer(TINY, photos, tmp_path / "out")
    with pytest.raises(UsageError, match="--init"):
        Trainer(dataclasses.replace(TINY, stage="srgan"), photos, tmp_path / "gan")


def test_measuring_the_terms_changes_nothing(photos: Path, tmp_path: Path) -> None:
    config, initial = srgan_start(tmp_path)
    trainer = Trainer(config, photos, tmp_path / "run", initial=initial)
    before = weights.load(initial).network.state_dict()
    assert all(torch.equal(value, before[key]) for key, value in trainer.step.generator.state_dict().items())
    lr, hr = trainer.batches(0)
    assert trainer.terms.keys() == {"content", "adversarial"}
    # Statistics of a real step, not the untrained averages that eval mode would take.
    sr = trainer.step.generator(lr)
    assert trainer.step.generator.training
    assert math.isclose(trainer.terms["content"], float(losses.mse(sr, hr).detach()), rel_tol=0.5)


def test_the_terms_are_those_of_the_first_start(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = Trainer(dataclasses.replace(TINY, steps=3), photos, out)
    first.run()
    second = Trainer(dataclasses.replace(TINY, steps=5), photos, out, resume=True)
    assert second.terms == first.terms
    assert weights.load(second.run()).info.recipe["terms"] == first.terms


def test_other_images_are_told(photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("0.png", "1.png"):
        (folder / name).write_bytes((photos / name).read_bytes())
    config = dataclasses.replace(TINY, steps=1)
    Trainer(config, folder, tmp_path / "run").run()
    Trainer(config, folder, tmp_path / "run", resume=True)
    assert "images have changed" not in caplog.text
    (folder / "1.png").write_bytes((photos / "2.png").read_bytes())
    Trainer(config, folder, tmp_path / "run", resume=True)
    assert "images have changed" in caplog.text


@pytest.mark.parametrize("option", ["save_every", "validate_every"])
def test_intervals_are_at_least_one_step(photos: Path, tmp_path: Path, option: str) -> None:
    with pytest.raises(UsageError, match="at least 1 step"):
        Trainer(TINY, photos, tmp_path / "run", **{option: 0})


@pytest.mark.parametrize(
    "change",
    [
        {"seed": -1},
        {"seed": 2**60},
        {"clip": -1.0},
        {"clip": math.nan},
        {"adversarial_weight": math.nan},
        {"learning_rate": math.nan},
        {"learning_rate": math.inf},
        {"crop": 16, "content": "vgg54"},
        {"crop": 16, "stage": "srgan"},
    ],
)
def test_values_that_cannot_train(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="expected"):
        dataclasses.replace(TINY, **change)


def test_a_full_disk(photos: Path, tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    out = tmp_path / "run"
    out.mkdir()
    (out / "log.jsonl").symlink_to("/dev/full")
    with pytest.raises(OutputError, match="make room"):
        Trainer(TINY, photos, out).run()


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    from srgan_fast.resize import nearest_up

    generator = torch.Generator().manual_seed(1)
    for part, count in (("train", 3), ("val", 1)):
        for kind in ("high", "low"):
            (tmp_path / "pairs" / part / kind).mkdir(parents=True)
        for index in range(count):
            low = torch.randint(0, 256, (3, 20, 24), dtype=torch.uint8, generator=generator)
            for kind, image in (("low", low), ("high", nearest_up(low, 2))):
                path = tmp_path / "pairs" / part / kind / f"{index}.png"
                Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    train = tmp_path / "pairs" / "train"
    Image.new("RGB", (48, 40)).save(train / "high" / "alone.png")
    for kind in ("high", "low"):
        Image.new("RGB", (48, 40)).save(train / kind / "unlike.png")
    Image.new("RGB", (20, 20)).save(train / "high" / "small.png")
    Image.new("RGB", (10, 10)).save(train / "low" / "small.png")
    return tmp_path / "pairs"


def test_pairs_are_cut_and_turned_together(pairs: Path, tmp_path: Path) -> None:
    from srgan_fast.resize import nearest_up

    shape = GeneratorConfig(scale=2, blocks=1, width=4)
    config = dataclasses.replace(TINY, generator=shape, degradation="pairs", steps=2)
    trainer = Trainer(config, pairs, tmp_path / "run")
    assert {skipped.path.name for skipped in trainer.skipped} == {"alone.png", "unlike.png", "small.png"}
    assert len(trainer.validation) == 1
    for step in range(8):
        lr, hr = trainer.batches(step)
        assert lr.shape == (2, 3, 16, 16)
        assert torch.equal(nearest_up((lr * 255).round(), 2), ((hr + 1) * 127.5).round())
    assert "val_psnr_db" in weights.load(trainer.run()).info.recipe
    with pytest.raises(UsageError, match="no high"):
        Trainer(config, pairs / "train", tmp_path / "other")
    with pytest.raises(InputError, match="100x100"):
        Trainer(dataclasses.replace(config, crop=100), pairs, tmp_path / "other")


def test_validation_takes_the_degradation_of_the_run(photos: Path, tmp_path: Path) -> None:
    from srgan_fast.resize import gaussian_down

    config = dataclasses.replace(TINY, degradation="gaussian")
    trainer = Trainer(config, photos, tmp_path / "run", validation=photos)
    for lr, hr in trainer.validation:
        assert torch.equal(lr, gaussian_down(hr, 4, config.blur_sigma))


def test_tensorboard_gets_curves_and_samples(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    class Writer:
        def __init__(self, folder: str, purge_step: int) -> None:
            calls.append(("open", folder, purge_step))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            calls.append(("scalar", name, step))

        def add_image(self, name: str, image: torch.Tensor, step: int) -> None:
            calls.append(("image", tuple(image.shape), step))

        def close(self) -> None:
            calls.append(("close",))

    monkeypatch.setattr(board.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer))
    config = dataclasses.replace(TINY, steps=4)
    for number, validation in enumerate((None, photos)):
        calls.clear()
        Trainer(config, photos, tmp_path / str(number), validation=validation, validate_every=2).run()
        assert calls[0] == ("open", str(tmp_path / str(number) / "tensorboard"), 0)
        assert [step for kind, *rest in calls if kind == "scalar" and rest[0] == "content" for step in rest[1:]] == [
            1,
            2,
            3,
            4,
        ]
        rows = 3 if validation else 2
        assert [call for call in calls if call[0] == "image"] == [("image", (3, rows * 32, 96), s) for s in (2, 4)]
        assert calls[-1] == ("close",)


def test_a_sample_grid_shows_lr_sr_hr() -> None:
    lr = torch.full((2, 3, 2, 2), 0.25)
    grid = board.sample_grid(lr, torch.zeros(2, 3, 8, 8), torch.full((2, 3, 8, 8), 3.0))
    assert grid.shape == (3, 16, 24)
    assert [float(grid[0, 0, x]) for x in (0, 8, 16)] == [0.25, 0.5, 1.0]


def test_tensorboard_that_cannot_write_does_not_end_a_run(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Full:
        def __init__(self, folder: str, purge_step: int) -> None: ...

        def add_scalar(self, *_: Any) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(board.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Full))
    assert Trainer(dataclasses.replace(TINY, steps=2), photos, tmp_path / "run").run().is_file()
    assert caplog.text.count("TensorBoard stops here") == 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_generator_is_judged_by_the_updated_discriminator(precision: str) -> None:
    """Autocast must not remember the discriminator's weights from before its update."""
    torch.manual_seed(0)
    config = dataclasses.replace(
        PRESETS["paper-srgan-mse"], generator=GeneratorConfig(blocks=1, width=8), crop=32, batch=2, precision=precision
    )
    generator, discriminator = Generator(config.generator), Discriminator(width=8)
    step = EagerStep(generator, losses.mse, config, discriminator)
    lr, hr = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        sr = generator(lr)
        before = float(losses.adversarial(discriminator(sr)))
    adversarial = float(step(lr, hr, 0)["adversarial"])
    with torch.no_grad():
        after = float(losses.adversarial(discriminator(sr)))
    assert abs(adversarial - after) < 0.1 * abs(adversarial - before)
