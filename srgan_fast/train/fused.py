"""Training-mode forward passes of the two networks by the kernels made for training.

The same function as the plain module in training mode: parameters, gradients, running statistics and the count of
batches. The batch statistics come with the convolution that makes the maps (`conv3x3_stats`); normalisation,
activation and skip are one pass (`batchnorm_act`), and so are PixelShuffle and PReLU (`pixelshuffle_prelu`). The other
convolutions are PyTorch's. Under autocast the maps have its dtype, and all statistics are float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from srgan_fast.errors import ShapeError, UsageError
from srgan_fast.kernels.batchnorm_act import batchnorm_act, channel_statistics
from srgan_fast.kernels.conv3x3_stats import conv3x3_stats
from srgan_fast.kernels.pixelshuffle_prelu import pixelshuffle_prelu
from srgan_fast.model import Discriminator, Generator, ResidualBlock, SubPixelStage

# A convolution of more inputs than this is PyTorch's, and its statistics are a pass of their own: the discriminator's
# last maps are few pixels and long sums, which cuDNN splits among programs and the kernel here does not.
_MOST_INPUTS = 128


def why_not(network: nn.Module) -> str | None:
    """The reason why a network has no training form by the kernels; None if it has one."""
    if type(network) not in (Generator, Discriminator):
        return f"there are training kernels for Generator and Discriminator, not for {type(network).__name__}"
    if isinstance(network, Generator):
        if network.config.separable:
            return "there are no training kernels for separable convolutions"
        if network.config.norm not in ("batch", "none"):
            return f"there are no training kernels for normalisation {network.config.norm!r}"
    for module in network.modules():
        if isinstance(module, nn.SyncBatchNorm):
            return "synchronised batch normalisation needs the statistics of all ranks, the kernels have those of one"
        if isinstance(module, nn.BatchNorm2d) and (
            module.momentum is None or not module.affine or not module.track_running_stats
        ):
            return "the training kernels need batch normalisation with momentum, gain and running statistics"
    dtypes = {parameter.dtype for parameter in network.parameters()}
    if not dtypes <= {torch.float32, torch.float64}:
        return f"the training kernels need parameters in float32, not {', '.join(sorted(map(str, dtypes)))}"
    return None


def forward_of(network: Generator | Discriminator) -> Callable[[Tensor], Tensor]:
    """The forward pass of `network.train()` by the training kernels: the same results, gradients and statistics.

    It reads the parameters when it is called, and weights are brought to the maps' dtype in each call.

    Raises:  UsageError for a network that has no such form, with the reason
    """
    reason = why_not(network)
    if reason is not None:
        raise UsageError(f"{reason}; train it with --kernels off")
    if isinstance(network, Generator):
        return lambda lr: _generate(network, lr)
    return lambda image: _discriminate(network, image)


class _Narrowed(torch.autograd.Function):
    """A weight and what it is in the maps' dtype, made beforehand; the gradient is widened for each weight by itself.

    Each is then there as early as its layer's backward pass is done: others may be averaged over ranks meanwhile.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, narrow: Tensor) -> Tensor:
        ctx.dtype = weight.dtype
        return narrow.view_as(narrow)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].to(ctx.dtype), None


class _Pass:
    """One forward pass through layers of convolution, normalisation and activation.

    What is small and the same for all layers is done for all at once, in few launches: the weights are brought to the
    maps' dtype at the start, and at the end the batch statistics join the running ones.
    """

    def __init__(self, convs: Iterable[nn.Module], dtype: torch.dtype) -> None:
        chosen = [conv for conv in convs if isinstance(conv, nn.Conv2d) and conv.in_channels <= _MOST_INPUTS]
        self._weights: dict[nn.Module, Tensor] = {conv: conv.weight for conv in chosen}
        if any(conv.weight.dtype != dtype for conv in chosen):
            narrow = [torch.empty_like(conv.weight, dtype=dtype) for conv in chosen]
            with torch.no_grad():
                torch._foreach_copy_(narrow, [conv.weight for conv in chosen])
            pairs = zip(chosen, narrow, strict=True)
            self._weights = {
                conv: _Narrowed.apply(conv.weight, weight)  # type: ignore[no-untyped-call]
                for conv, weight in pairs
            }
        self._running: list[Tensor] = []
        self._found: list[Tensor] = []
        self._shares: list[float] = []
        self._kept: list[float] = []
        self._counts: list[Tensor] = []

    def layer(
        self,
        x: Tensor,
        conv: nn.Module,
        norm: nn.Module,
        *,
        slopes: Tensor | None = None,
        skip: Tensor | None = None,
        slope: float = 1.0,
    ) -> Tensor:
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        if conv in self._weights:
            weight = self._weights[conv].permute(0, 2, 3, 1)
            y, mean, variance = conv3x3_stats(x, weight, conv.bias, conv.stride[0])
        else:
            y = _conv(x, conv)
            mean, variance = channel_statistics(y.detach())
        self._note(norm, mean, variance, y.numel() // y.shape[-1])
        return batchnorm_act(y, mean, variance, norm.weight, norm.bias, slopes, skip, slope, norm.eps)

    def _note(self, norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, pixels: int) -> None:
        if pixels == 1:
            raise ShapeError("expected more than one value a channel, got 1; take a larger crop or batch")
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.momentum is not None
        assert norm.num_batches_tracked is not None
        self._running += [norm.running_mean, norm.running_var]
        self._found += [mean, variance]
        # The running variance is the unbiased one.
        self._shares += [norm.momentum, norm.momentum * pixels / (pixels - 1)]
        self._kept += [1 - norm.momentum] * 2
        self._counts.append(norm.num_batches_tracked)

    @torch.no_grad()
    def end(self) -> None:
        if self._counts:
            torch._foreach_mul_(self._running, self._kept)
            torch._foreach_add_(self._running, torch._foreach_mul(self._found, self._shares))
            torch._foreach_add_(self._counts, 1)


def _generate(network: Generator, lr: Tensor) -> Tensor:
    features = _prelu(_conv(_nhwc(lr), network.head[0]), network.head[1])
    blocks = [block for block in network.body if isinstance(block, ResidualBlock)]
    conv, end = network.skip
    normed = [conv] if isinstance(end, nn.BatchNorm2d) else []
    if network.config.norm == "batch":
        normed += [each for block in blocks for each in (block.conv1, block.conv2)]
    through = _Pass(normed, features.dtype)
    x = features
    for block in blocks:
        if network.config.norm == "batch":
            y = through.layer(x, block.conv1, block.norm1, slopes=block.prelu.weight)
            x = through.layer(y, block.conv2, block.norm2, skip=x)
        else:
            x = x + _conv(_prelu(_conv(x, block.conv1), block.prelu), block.conv2)
    if isinstance(end, nn.BatchNorm2d):
        x = through.layer(x, conv, end, skip=features)
    else:
        y = _conv(x, conv)
        x = features + (_prelu(y, end) if isinstance(end, nn.PReLU) else y)
    for stage in network.upsample:
        assert isinstance(stage, SubPixelStage)
        x = _prelu(_conv(x, stage.conv), stage.prelu, 2)
    hr = _conv(x, network.output).permute(0, 3, 1, 2)
    through.end()
    return torch.tanh(hr) if network.config.activation == "tanh" else hr


def _discriminate(network: Discriminator, image: Tensor) -> Tensor:
    first, first_act, *layers, pool = network.features
    x = first_act(_conv(_nhwc(image), first))
    through = _Pass(layers[::3], x.dtype)
    for conv, norm, act in zip(layers[::3], layers[1::3], layers[2::3], strict=True):
        assert isinstance(act, nn.LeakyReLU)
        x = through.layer(x, conv, norm, slope=act.negative_slope)
    maps = x.permute(0, 3, 1, 2)
    through.end()
    # Maps of the size that it averages to, those of a 96x96 crop, stay as they are.
    pooled = maps if list(maps.shape[2:]) == [pool.output_size] * 2 else pool(maps)
    return network.classifier(pooled)[:, 0]


def _nhwc(maps: Tensor) -> Tensor:
    return maps.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)


def _conv(x: Tensor, conv: nn.Module) -> Tensor:
    """PyTorch's convolution of NHWC maps, which are channels_last to it: nothing is copied."""
    return conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def _prelu(x: Tensor, prelu: nn.Module, r: int = 1) -> Tensor:
    """PReLU, with PixelShuffle by r before it; the gradient of a slope that channels share is the sum of theirs."""
    assert isinstance(prelu, nn.PReLU)
    return pixelshuffle_prelu(x, prelu.weight.expand(x.shape[-1] // (r * r)), r)
