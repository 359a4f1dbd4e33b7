"""The loss terms of the paper, formula by formula, and the feature networks that they look through."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from srgan_fast.errors import InputError
from srgan_fast.features import VGG19, SqueezeNet, load_squeezenet, load_vgg19
from srgan_fast.model import Discriminator
from srgan_fast.train import losses


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
    beside = want + 3.0 * float(losses.mse(sr, hr))
    assert math.isclose(float(losses.PerceptualLoss(features, "paper", 3.0)(sr, hr)), beside, rel_tol=1e-4)


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
