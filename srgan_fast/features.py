"""Networks that were trained to recognise things, used as a measure of likeness: VGG19, and SqueezeNet offline."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from srgan_fast.errors import InputError, UsageError, WeightsError

VGG19_FILE = "vgg19-dcbb9e9d.pth"
VGG19_ADDRESS = f"https://download.pytorch.org/models/{VGG19_FILE}"

# Channels of VGG19's convolutions, five groups, each followed by a max-pool.
_VGG19 = ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4)


class Features(Protocol):
    """Images [n, 3, h, w] in [-1, 1] -> feature maps."""

    def __call__(self, image: Tensor) -> Tensor:
        """The feature maps of a batch."""


class VGG19(nn.Module):
    """phi_{i,j}: the j-th convolution, after its activation, before the i-th max-pool.

    Shapes:  [n, 3, h, w] -> [n, c, h / 2^(i-1), w / 2^(i-1)]
    Units:   images in [-1, 1]; `convention` says what the weights expect: "torchvision" (RGB, ImageNet mean and
             deviation) or "caffe" (BGR in 0..255 minus 103.939, 116.779, 123.68)
    Source:  Simonyan and Zisserman, arXiv:1409.1556, network E
    """

    def __init__(self, i: int, j: int, convention: str = "torchvision") -> None:
        super().__init__()
        if not (1 <= i <= 5 and 1 <= j <= len(_VGG19[i - 1])):
            raise UsageError(f"expected a layer of VGG19, got phi_{i},{j}")
        layers: list[nn.Module] = []
        channels = 3
        for group in range(i):
            for width in _VGG19[group][: j if group == i - 1 else None]:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            if group < i - 1:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.convention = convention
        self.requires_grad_(False)

    def forward(self, image: Tensor) -> Tensor:
        unit = (image + 1) / 2
        if self.convention == "caffe":
            mean = unit.new_tensor([103.939, 116.779, 123.68]).view(-1, 1, 1)
            x = unit.flip(1) * 255 - mean
        else:
            mean = unit.new_tensor([0.485, 0.456, 0.406]).view(-1, 1, 1)
            deviation = unit.new_tensor([0.229, 0.224, 0.225]).view(-1, 1, 1)
            x = (unit - mean) / deviation
        return self.features(x)


def load_vgg19(i: int, j: int, path: Path | None, convention: str) -> VGG19:
    """VGG19 up to phi_{i,j} with weights from a file of torchvision's, or from torch.hub's folder.

    Raises:  InputError that says how to get the file; WeightsError if the file does not fit
    """
    if path is None:
        path = Path(torch.hub.get_dir()) / "checkpoints" / VGG19_FILE
    if not path.is_file():
        raise InputError(
            f"VGG19's weights are needed, and {path} does not exist; fetch {VGG19_ADDRESS} (548 MB) and give it as"
            " --vgg-weights, or train with --content mse or squeezenet"
        )
    tensors = _read(path)
    network = VGG19(i, j, convention)
    wanted = network.state_dict()
    try:
        network.load_state_dict({key: tensors[key] for key in wanted})
    except (KeyError, RuntimeError, TypeError) as error:
        raise WeightsError(f"expected torchvision's vgg19 in {path}, got other tensors ({error})") from error
    return network.eval()


class _Fire(nn.Module):
    def __init__(self, inputs: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeeze, 1)
        self.expand1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.expand1(x)), F.relu(self.expand3(x))], 1)


class SqueezeNet(nn.Module):
    """Feature maps of SqueezeNet 1.0 after fire8: a small stand-in for VGG where its weights cannot be had.

    Its scores and weights are its own; nothing trained with it may be called VGG.

    Shapes:  [n, 3, h, w] -> [n, 512, about h/8, about w/8]
    Units:   images in [-1, 1]; inside BGR in 0..255 minus 104, 117, 123, as its Caffe weights expect
    Source:  Iandola et al., arXiv:1602.07360
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 96, 7, stride=2)
        widths = ((96, 16, 64), (128, 16, 64), (128, 32, 128), (256, 32, 128), (256, 48, 192), (384, 48, 192))
        self.fires = nn.ModuleList(_Fire(*width) for width in (*widths, (384, 64, 256)))
        self.requires_grad_(False)

    def forward(self, image: Tensor) -> Tensor:
        mean = image.new_tensor([104.0, 117.0, 123.0]).view(-1, 1, 1)
        x = F.relu(self.conv1((image + 1).flip(1) * 127.5 - mean))
        x = F.max_pool2d(x, 3, 2, ceil_mode=True)
        for index, fire in enumerate(self.fires, start=2):
            x = fire(x)
            if index == 4:
                x = F.max_pool2d(x, 3, 2, ceil_mode=True)
        return x


def load_squeezenet(path: Path | None) -> SqueezeNet:
    """SqueezeNet from a file of {layer name: (weight, bias)}.

    Raises:  InputError if there is no file; WeightsError if it does not fit
    """
    if path is None or not path.is_file():
        raise InputError(f"SqueezeNet's weights are needed, got {path}; give a file as --squeezenet-weights")
    layers = _read(path)
    network = SqueezeNet()
    modules: dict[str, Any] = {"conv1": network.conv1}
    for index, fire in enumerate(network.fires, start=2):
        modules |= {
            f"fire{index}/conv1x1_1": fire.squeeze,
            f"fire{index}/conv1x1_2": fire.expand1,
            f"fire{index}/conv3x3_2": fire.expand3,
        }
    try:
        for name, module in modules.items():
            weight, bias = layers[name]
            module.weight.data.copy_(weight)
            module.bias.data.copy_(bias)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise WeightsError(f"expected SqueezeNet 1.0 in {path}, got other tensors ({error})") from error
    return network.eval()


def _read(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load meets damaged files with whatever its parser stumbles over
        raise WeightsError(f"expected PyTorch weights, got a file that cannot be read: {path}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"expected a dictionary of tensors in {path}, got {type(content).__name__}")
    return content
