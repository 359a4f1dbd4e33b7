"""A network as a flat list of op calls over named buffers, and where in one block of memory each buffer lies.

Nothing here runs anything: `walk` reads a network that was rewritten for inference, `Layout` places its buffers for
frames of one size, and `bind` turns both into calls with memory in their hands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from srgan_fast import kernels
from srgan_fast.calibration import Calibration, quantised_layers
from srgan_fast.community import Range, bounds
from srgan_fast.kernels.contract import LEVELS
from srgan_fast.model import Generator, SRVGGNetCompact, has_global_layers
from srgan_fast.weights import ModelInfo

_ALIGNMENT = 256  # bytes; what descriptors and wide loads ask for, with room


class Unsupported(Exception):
    """A network that the kernels do not cover; the text says which part."""


@dataclass(frozen=True)
class Step:
    """One op call: buffers by argument name, the buffer that it writes, and what is the same for every frame."""

    op: str
    buffers: dict[str, str]
    out: str
    constants: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Buffer:
    """Maps of `channels` at `scale` times the frame's size, in `dtype`; None is that of the frames."""

    scale: int
    channels: int
    dtype: torch.dtype | None

    def shape(self, n: int, h: int, w: int) -> tuple[int, int, int, int]:
        """NHWC, for n LR frames of h x w."""
        return n, h * self.scale, w * self.scale, self.channels

    def size_bytes(self, n: int, h: int, w: int, frames: torch.dtype) -> int:
        """What it takes, rounded up so that the next one starts aligned."""
        size = math.prod(self.shape(n, h, w)) * (self.dtype or frames).itemsize
        return -(-size // _ALIGNMENT) * _ALIGNMENT


@dataclass(frozen=True)
class Program:
    """The steps of a network, in order, and the buffers that they use."""

    steps: tuple[Step, ...]
    buffers: dict[str, Buffer]

    def elements_a_pixel(self) -> int:
        """The most values of one buffer for a LR pixel, which 32-bit offsets bound."""
        return max(buffer.scale**2 * buffer.channels for buffer in self.buffers.values())


def walk(
    network: nn.Module,
    info: ModelInfo,
    dtype: torch.dtype,
    device: torch.device,
    calibration: Calibration | None = None,
) -> Program:
    """The program of a network that `rewrite` has folded and rid of its last shuffle.

    With a calibration the convolutions between the first and the last are in int8, and `dtype` is that of the rest: of
    the ends, and of the stream that residuals are added to.

    Raises:  Unsupported for networks and layers that have no kernels
    """
    if has_global_layers(network):
        raise Unsupported("instance normalisation looks at the whole frame")
    with torch.no_grad():
        writer = _Writer(info, dtype, device)
        if calibration is not None:
            writer = _Int8Writer(info, dtype, device, network, calibration)
        if isinstance(network, Generator):
            writer.generator(network)
        elif isinstance(network, SRVGGNetCompact):
            writer.compact(network)
        else:
            raise Unsupported(f"there are no kernels for the network {info.architecture}")
    return Program(tuple(writer.steps), writer.buffers)


class _Writer:
    """Writes the steps of a program one after another."""

    def __init__(self, info: ModelInfo, dtype: torch.dtype, device: torch.device) -> None:
        self.info, self.dtype, self.device = info, dtype, device
        self.steps: list[Step] = []
        self.buffers: dict[str, Buffer] = {"frames": Buffer(1, 3, None)}
        low, high = self._colours(info.input_range)
        self.scaling = {"gain": high - low, "offset": low}

    def generator(self, network: Generator) -> None:
        """SRResNet: head, blocks in place on one buffer, long skip, sub-pixel stages, tail."""
        head: Any = network.head
        skip: Any = network.skip
        upsample: Any = network.upsample
        blocks: Any = network.body
        if network.config.separable:
            raise Unsupported("separable convolutions have no kernels")
        if not len(network.upsample):
            raise Unsupported("a network without a sub-pixel stage has no kernels")
        readers = [*(block.conv1 for block in blocks), skip[0]]
        self._head(head[0], head[1], "frames", "skip", reader=readers[0], **self.scaling)
        x = "skip"
        for block, reader in zip(blocks, readers[1:], strict=True):
            self._conv(block.conv1, block.prelu, x, "inner", reader=block.conv2)
            self._conv(block.conv2, None, "inner", "trunk", residual=x, reader=reader)
            x = "trunk"
        end = skip[1] if isinstance(skip[1], nn.PReLU) else None
        # In place on the skip, except where the convolution itself reads it.
        out = "skip" if x != "skip" else "trunk"
        *stages, last = upsample
        self._conv(skip[0], end, x, out, residual="skip", reader=upsample[0].conv)
        x, scale = out, 1
        for stage, following in zip(stages, upsample[1:], strict=True):
            scale *= 2
            self._stage(stage.conv, stage.prelu, x, f"up{scale}", scale=scale, reader=following.conv)
            x = f"up{scale}"
        self._conv(last.conv, last.prelu, x, "maps", scale=scale)
        output: Any = network.output
        self._tail(output[0], x="maps", scale=scale, r=2, tanh=network.config.activation == "tanh", base=None)

    def compact(self, network: SRVGGNetCompact) -> None:
        """A chain of convolutions from one buffer to another and back."""
        layers: Any = list(network.body)
        convs = layers[2::2]
        # Scaled by themselves: the tail adds them too.
        self.buffers["lr"] = Buffer(1, 4, self.dtype)
        self._step("frame_input", {"frames": "frames"}, "lr", dtype=self.dtype, **self.scaling)
        self._head(layers[0], layers[1], "lr", "even", reader=convs[0] if convs else None)
        x = "even"
        for conv, activation, reader in zip(convs, layers[3::2], [*convs, None][1:], strict=True):
            out = "odd" if x == "even" else "even"
            self._conv(conv, activation, x, out, reader=reader)
            x = out
        self._tail(network.output, x=x, scale=1, r=network.scale, tanh=False, base="lr")

    # What follows is told who reads its result: int8 needs that one's scale, floats do not.

    def _head(self, conv: Any, activation: nn.Module, x: str, out: str, *, reader: Any, **scaling: Tensor) -> None:
        weight, bias = self._weights(conv)
        cout = weight.shape[0]
        self.buffers[out] = Buffer(1, cout, self.dtype)
        packed = self._module("head").pack(weight).to(self.dtype)
        slopes = self._slopes(activation, cout)
        self._step("head", {"x": x}, out, weight=packed, bias=bias, slopes=slopes, **scaling)

    def _conv(
        self,
        conv: Any,
        activation: nn.Module | None,
        x: str,
        out: str,
        *,
        residual: str | None = None,
        scale: int = 1,
        reader: Any = None,
    ) -> None:
        weight, bias = self._weights3x3(conv)
        cout = weight.shape[0]
        self.buffers[out] = Buffer(scale, cout, self.dtype)
        constants = {"weight": self._module("conv3x3").pack(weight).to(self.dtype), "bias": bias}
        if activation is not None:
            constants["slopes"] = self._slopes(activation, cout)
        self._step("conv3x3", {"x": x} | ({"residual": residual} if residual else {}), out, **constants)

    def _stage(self, conv: Any, activation: nn.Module, x: str, out: str, *, scale: int, reader: Any) -> None:
        weight, bias = self._module("conv3x3_shuffle").pack(*self._weights3x3(conv), 2)
        channels = bias.numel() // 4
        self.buffers[out] = Buffer(scale, channels, self.dtype)
        slopes = self._slopes(activation, channels)
        self._step("conv3x3_shuffle", {"x": x}, out, weight=weight.to(self.dtype), bias=bias, slopes=slopes, r=2)

    def _tail(self, conv: Any, *, x: str, scale: int, r: int, tanh: bool, base: str | None) -> None:
        weight, bias = self._weights(conv)
        packed = self._module("conv3x3").pack(weight).to(self.dtype)
        low, high = self._colours(self.info.output_range)
        buffers = {"x": x} | ({"base": base} if base else {})
        constants = {"weight": packed, "bias": bias, "gain": 1 / (high - low), "offset": -low / (high - low), "r": r}
        across = self._module("tail").rows_weight(packed)
        if across is not None:
            self.buffers["sums"] = Buffer(scale, across.shape[-1], torch.float32)
            buffers["row_sums"] = "sums"
            constants["row_weight"] = across
        self.buffers["pixels"] = Buffer(scale * r, 3, None)
        self._step("tail", buffers, "pixels", tanh=tanh, **constants)

    def _step(self, op: str, buffers: dict[str, str], out: str, **constants: Any) -> None:
        self.steps.append(Step(op, buffers, out, constants))

    def _module(self, op: str) -> Any:
        return kernels.load(op)

    def _weights(self, conv: Any) -> tuple[Tensor, Tensor]:
        if not isinstance(conv, nn.Conv2d):
            raise Unsupported(f"a {type(conv).__name__} in the place of a convolution has no kernel")
        weight = conv.weight.detach().to(self.device)
        bias = conv.bias if conv.bias is not None else torch.zeros(weight.shape[0])
        return weight, self._vector(bias)

    def _weights3x3(self, conv: Any) -> tuple[Tensor, Tensor]:
        weight, bias = self._weights(conv)
        if tuple(weight.shape[2:]) != (3, 3):
            raise Unsupported(f"a convolution of {tuple(weight.shape[2:])} inside the network has no kernel")
        return weight, bias

    def _slopes(self, activation: nn.Module, channels: int) -> Tensor:
        if isinstance(activation, nn.PReLU):
            return self._vector(activation.weight.expand(channels))
        if isinstance(activation, nn.LeakyReLU):
            return self._vector(torch.full((channels,), float(activation.negative_slope)))
        if isinstance(activation, nn.ReLU):
            return self._vector(torch.zeros(channels))
        raise Unsupported(f"the activation {type(activation).__name__} has no kernel")

    def _colours(self, colours: Range) -> tuple[Tensor, Tensor]:
        low, high = (bound.reshape(-1).expand(3) for bound in bounds(colours))
        return self._vector(low), self._vector(high)

    def _vector(self, values: Tensor) -> Tensor:
        return values.detach().to(self.device, torch.float32).contiguous()


class _Int8Writer(_Writer):
    """The same with int8 between the ends: beside a buffer of floats, or in its place, lies one of int8.

    A result with a residual is kept in floats for the next residual, and quantised for its reader besides. Any other
    result is quantised alone, or has no reader and is the tail's.
    """

    def __init__(
        self,
        info: ModelInfo,
        dtype: torch.dtype,
        device: torch.device,
        network: nn.Module,
        calibration: Calibration,
    ) -> None:
        super().__init__(info, dtype, device)
        self._scales = {conv: calibration.scales[name] for name, conv in quantised_layers(network).items()}

    def _head(self, conv: Any, activation: nn.Module, x: str, out: str, *, reader: Any, **scaling: Tensor) -> None:
        super()._head(conv, activation, x, out, reader=reader, **scaling)
        if reader is not None:
            self.buffers[_whole(out)] = Buffer(1, self.buffers[out].channels, torch.int8)
            self._step("quantise_int8", {"x": out}, _whole(out), inverse=self._inverse(reader))

    def _conv(
        self,
        conv: Any,
        activation: nn.Module | None,
        x: str,
        out: str,
        *,
        residual: str | None = None,
        scale: int = 1,
        reader: Any = None,
    ) -> None:
        self._whole_conv(conv, activation, x, out, residual=residual, scale=scale, reader=reader, r=1)

    def _stage(self, conv: Any, activation: nn.Module, x: str, out: str, *, scale: int, reader: Any) -> None:
        self._whole_conv(conv, activation, x, out, residual=None, scale=scale, reader=reader, r=2)

    def _whole_conv(
        self,
        conv: Any,
        activation: nn.Module | None,
        x: str,
        out: str,
        *,
        residual: str | None,
        scale: int,
        reader: Any,
        r: int,
    ) -> None:
        op = self._module("conv3x3_int8")
        weight, bias = self._weights3x3(conv)
        if (reason := op.why_not(weight.shape[1])) is not None:
            raise Unsupported(reason)
        channels = weight.shape[0] // (r * r)
        alone = reader is not None and residual is None
        constants = op.pack(weight, bias, self._scales[conv], self._scales[reader] if alone else 1.0, r)
        constants |= {"dtype": torch.int8 if alone else self.dtype, "r": r}
        if activation is not None:
            constants["slopes"] = self._slopes(activation, channels)
        buffers = {"x": _whole(x)} | ({"residual": residual} if residual else {})
        result = _whole(out) if alone else out
        self.buffers[result] = Buffer(scale, channels, constants["dtype"])
        if reader is not None and not alone:
            buffers["quantised"] = _whole(out)
            self.buffers[_whole(out)] = Buffer(scale, channels, torch.int8)
            constants["inverse"] = self._inverse(reader)
        self._step("conv3x3_int8", buffers, result, **constants)

    def _inverse(self, reader: Any) -> float:
        """1 over the scale of what a convolution reads, as a float32 value."""
        return torch.tensor(1 / self._scales[reader], dtype=torch.float32).item()


def _whole(buffer: str) -> str:
    """The buffer of int8 that belongs to one of floats."""
    return f"{buffer}_int8"


@dataclass(frozen=True)
class Layout:
    """Where each buffer of a program starts in one block of memory, for frames of one size and dtype."""

    offsets: dict[str, int]
    size_bytes: int


def place(program: Program, n: int, h: int, w: int, frames: torch.dtype) -> Layout:
    """Give every buffer room for as long as it is needed: first fit, in the order in which they come to life.

    The frames are there from the start, the pixels to the end.
    """
    first: dict[str, int] = {"frames": -1}
    last: dict[str, int] = {}
    for index, step in enumerate(program.steps):
        for name in (*step.buffers.values(), step.out):
            first.setdefault(name, index)
            last[name] = index
    last["pixels"] = len(program.steps)
    sizes = {name: program.buffers[name].size_bytes(n, h, w, frames) for name in first}
    offsets: dict[str, int] = {}
    for name in sorted(first, key=lambda name: first[name]):
        beside = sorted(
            (offsets[other], offsets[other] + sizes[other])
            for other in offsets
            if first[other] <= last[name] and first[name] <= last[other]
        )
        start = 0
        for low, high in beside:
            if start + sizes[name] <= low:
                break
            start = max(start, high)
        offsets[name] = start
    return Layout(offsets, max(offsets[name] + sizes[name] for name in offsets))


@dataclass(frozen=True)
class Call:
    """A step with its memory: what it is, the call, the buffer it writes, and whether it also reads that buffer."""

    op: str
    work: Callable[[], Tensor]
    out: Tensor
    in_place: bool


def bind(
    program: Program, layout: Layout, memory: Tensor, n: int, h: int, w: int, frames: torch.dtype
) -> tuple[list[Call], dict[str, Tensor]]:
    """The calls of a program over views of `memory`, uint8 [at least layout.size_bytes], and the views by name."""
    views: dict[str, Tensor] = {}
    for name, offset in layout.offsets.items():
        buffer = program.buffers[name]
        dtype, shape = buffer.dtype or frames, buffer.shape(n, h, w)
        flat = memory[offset : offset + math.prod(shape) * dtype.itemsize]
        views[name] = flat.view(dtype).view(shape)
    calls = []
    for number, step in enumerate(program.steps):
        arguments = {**step.constants, **{argument: views[name] for argument, name in step.buffers.items()}}
        if step.op in ("frame_input", "head") and "gain" in arguments:
            arguments["gain"] = arguments["gain"] / LEVELS.get(frames, 1)
        if step.op == "tail":
            arguments["dtype"] = frames
        if step.op in kernels.ON_HOPPER:
            arguments["backwards"] = number % 2 == 1
        work = partial(kernels.load(step.op).run, **arguments, out=views[step.out])
        calls.append(Call(step.op, work, views[step.out], step.out in step.buffers.values()))
    return calls, views


def run_all(calls: Iterable[Call]) -> None:
    """Launch the calls in order."""
    for call in calls:
        call.work()
