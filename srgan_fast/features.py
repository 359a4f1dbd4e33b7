"""Networks that were trained to recognise things, used as a measure of likeness: VGG19, and SqueezeNet offline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

from srgan_fast import archive
from srgan_fast.errors import InputError, UsageError, WeightsError

VGG19_FILE = "vgg19-dcbb9e9d.pth"
VGG19_ADDRESS = f"https://download.pytorch.org/models/{VGG19_FILE}"

# Channels of VGG19's convolutions, five groups, each followed by a max-pool.
_VGG19 = ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4)


class Features(Protocol):
    """Images [n, 3, h, w] in [-1, 1] -> feature maps."""

    def __call__(self, image: Tensor) -> Tensor:
        """The feature maps of a batch."""

    def pair(self, sr: Tensor, hr: Tensor) -> tuple[Tensor, Tensor]:
        """The feature maps of both, with a gradient for `sr` alone."""


class Layer(NamedTuple):
    """A 3x3 convolution with padding and its ReLU; `pooled` where a 2x2 max-pool follows."""

    weight: Tensor
    bias: Tensor
    pooled: bool


class Chain(torch.autograd.Function):
    """`Layer`s over two batches as one of twice the size; a gradient for the first batch, and none for weights.

    For the gradient only the signs of the first batch's activations are kept (of the pooled ones, where they are
    pooled: what did not win has no gradient), and the winners of its pools; of the second batch nothing.

    Shapes:  sr, hr [n, c, h, w] -> two batches of feature maps
    """

    @staticmethod
    def forward(ctx: Any, sr: Tensor, hr: Tensor, layers: Sequence[Layer]) -> tuple[Tensor, Tensor]:
        """The maps of both; those of `hr` are constants to autograd."""
        count = len(sr)
        x = torch.cat([sr, hr]).to(layers[0].weight.dtype)
        kept: list[Tensor] = []
        ctx.shapes, ctx.layers, ctx.dtype = [], layers, sr.dtype
        for weight, bias, pooled in layers:
            ctx.shapes.append((count, *x.shape[1:]))
            x = F.conv2d(x, weight, bias, padding=1).relu_()
            if pooled:
                x, winners = F.max_pool2d(x, 2, return_indices=True)
                kept.append(winners[:count].clone())  # a view would hold the other half too
            kept.append(x[:count] > 0)
        ctx.save_for_backward(*kept)
        got, want = x[:count], x[count:]
        ctx.mark_non_differentiable(want)
        ctx.set_materialize_grads(False)
        return got, want

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, None, None]:
        """The gradient of `sr`, in its shape and dtype, from that of its maps."""
        if grad is None:
            return None, None, None
        kept = list(ctx.saved_tensors)
        for (weight, _bias, pooled), shape in zip(reversed(ctx.layers), reversed(ctx.shapes), strict=True):
            grad = grad * kept.pop()
            if pooled:
                # Only the shape and the layout of the pool's input count: what is in it is not read.
                size = (shape[0], len(weight), *shape[2:])
                like = torch.empty(size, dtype=grad.dtype, device=grad.device, memory_format=_layout(grad))
                window = ([2, 2], [2, 2], [0, 0], [1, 1])
                grad = torch.ops.aten.max_pool2d_with_indices_backward(grad, like, *window, False, kept.pop())
            grad = conv2d_input(shape, weight, grad, padding=1)  # type: ignore[no-untyped-call]
        return grad.to(ctx.dtype), None, None


def _layout(tensor: Tensor) -> torch.memory_format:
    dense = tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if dense else torch.contiguous_format


class VGG19(nn.Module):
    """phi_{i,j}: the j-th convolution, after its activation, before the i-th max-pool.

    Shapes:  [n, 3, h, w] -> [n, c, h / 2^(i-1), w / 2^(i-1)]
    Units:   images in [-1, 1]; `convention` says what the weights expect: "torchvision" (RGB, ImageNet mean and
             deviation) or "caffe" (BGR in 0..255 minus 103.939, 116.779, 123.68)
    Source:  Simonyan and Zisserman, arXiv:1409.1556, network E
    """

    mean: Tensor
    deviation: Tensor

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
        mean = [103.939, 116.779, 123.68] if convention == "caffe" else [0.485, 0.456, 0.406]
        _constant(self, "mean", mean)
        _constant(self, "deviation", [0.229, 0.224, 0.225])
        self._converted: dict[torch.dtype, tuple[list[tuple[int, int]], list[Layer]]] = {}
        self.requires_grad_(False)

    def forward(self, image: Tensor) -> Tensor:
        """Images [n, 3, h, w] in [-1, 1] -> the maps of phi_{i,j}."""
        return self.features(self._prepared(image))

    def pair(self, sr: Tensor, hr: Tensor) -> tuple[Tensor, Tensor]:
        """The feature maps of both in one pass of twice the batch, with a gradient for `sr` alone."""
        with torch.no_grad():
            hr = self._prepared(hr)
        return Chain.apply(self._prepared(sr), hr, self._layers(_compute_dtype(sr)))  # type: ignore[no-untyped-call]

    def _prepared(self, image: Tensor) -> Tensor:
        unit = (image + 1) / 2
        if self.convention == "caffe":
            return unit.flip(1) * 255 - self.mean
        return (unit - self.mean) / self.deviation

    def _layers(self, dtype: torch.dtype) -> list[Layer]:
        """The weights in the dtype of a computation, converted once: autocast would do it at every step."""
        now = [(parameter.data_ptr(), parameter._version) for parameter in self.parameters()]
        known, layers = self._converted.get(dtype, ([], []))
        if known != now:
            layers = []
            for module in self.features:
                if isinstance(module, nn.Conv2d):
                    assert module.bias is not None
                    layers.append(Layer(module.weight.detach().to(dtype), module.bias.detach().to(dtype), False))
                elif isinstance(module, nn.MaxPool2d):
                    layers[-1] = layers[-1]._replace(pooled=True)
            self._converted[dtype] = now, layers
        return layers


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
        raise _others(f"torchvision's vgg19 in {path}", error) from error
    return network.eval()


def _constant(network: nn.Module, name: str, values: list[float]) -> None:
    """A value for each channel, which moves with the network and is no part of its weights."""
    network.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)


def _compute_dtype(image: Tensor) -> torch.dtype:
    """What a convolution of `image` would be computed in; autocast leaves float64 as it is."""
    kind = image.device.type
    if torch.is_autocast_enabled(kind) and image.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return image.dtype


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

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 96, 7, stride=2)
        widths = ((96, 16, 64), (128, 16, 64), (128, 32, 128), (256, 32, 128), (256, 48, 192), (384, 48, 192))
        self.fires = nn.ModuleList(_Fire(*width) for width in (*widths, (384, 64, 256)))
        _constant(self, "mean", [104.0, 117.0, 123.0])
        self.requires_grad_(False)

    def forward(self, image: Tensor) -> Tensor:
        """Images [n, 3, h, w] in [-1, 1] -> the maps after fire8."""
        x = F.relu(self.conv1((image + 1).flip(1) * 127.5 - self.mean))
        x = F.max_pool2d(x, 3, 2, ceil_mode=True)
        for index, fire in enumerate(self.fires, start=2):
            x = fire(x)
            if index == 4:
                x = F.max_pool2d(x, 3, 2, ceil_mode=True)
        return x

    def pair(self, sr: Tensor, hr: Tensor) -> tuple[Tensor, Tensor]:
        """The feature maps of both, with a gradient for `sr` alone."""
        with torch.no_grad():
            want = self(hr)
        return self(sr), want


def load_squeezenet(path: Path | None) -> SqueezeNet:
    """SqueezeNet from a file of {layer name: (weight, bias)}.

    Raises:  InputError if there is no file; WeightsError if it does not fit
    """
    if path is None or not path.is_file():
        raise InputError(f"SqueezeNet's weights are needed, got {path or 'no file'}; give one as --squeezenet-weights")
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
        raise _others(f"SqueezeNet 1.0 in {path}", error) from error
    return network.eval()


def _others(expected: str, error: Exception) -> WeightsError:
    # torch tells of every tensor in a line of its own.
    reason = " ".join(str(error).split())[:160]
    return WeightsError(f"expected {expected}, got other tensors ({reason}); give the file of that network")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = archive.unpickle(path)
    except WeightsError:
        raise
    except Exception as error:  # torch.load meets damaged files with whatever its parser stumbles over
        said = f"expected PyTorch weights, got a file that cannot be read: {path}; fetch it again"
        raise WeightsError(said) from error
    if not isinstance(content, dict):
        raise WeightsError(
            f"expected a dictionary of tensors in {path}, got {type(content).__name__}; give the weights alone"
        )
    return content
