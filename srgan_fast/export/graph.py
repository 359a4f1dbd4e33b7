"""The graph of a model, written node by node from a trace of its network.

Not by torch.onnx: this takes a fraction of a second, needs no more than the package onnx, and gives the same bytes
whatever the version of torch, the folder and the machine, so that a digest of the file names what was built from it.
"""

from __future__ import annotations

import itertools
import operator
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import fx, nn
from torch.nn import functional as F

from srgan_fast.community import Range, bounds
from srgan_fast.errors import BackendUnavailable, UsageError
from srgan_fast.kernels.contract import LEVELS
from srgan_fast.model import receptive_radius
from srgan_fast.rewrite import folded, without_last_shuffle
from srgan_fast.weights import Model, bundled, load

if TYPE_CHECKING:
    from onnx import ModelProto

# How frames lie in a graph; see `Options`.
Frames = Literal["uint8", "float"]
FRAMES: tuple[Frames, ...] = ("uint8", "float")
INPUT, OUTPUT = "lr", "sr"
OPSET = 18
# The oldest that has this opset, so that old readers take the file.
_IR_VERSION = 8
# fx can trace in one thread at a time.
_TRACING = threading.Lock()
# Counts changes of what is written for the same weights.
_FORMAT = 1

_FLOAT32: np.dtype[Any] = np.dtype(np.float32)
_UINT8: np.dtype[Any] = np.dtype(np.uint8)


@dataclass(frozen=True)
class Options:
    """What is written of a model.

    `precision` is that of the network; what makes pixels of its result is in float32 always. `frames` uint8 are
    [batch, height, width, 3] in and out; float ones are float32 [batch, 3, height, width] in [0, 1], clamped.
    `leaky_relu` writes a PReLU whose slope all channels share as a LeakyRelu, for engines that fuse only that.

    Raises:  UsageError for another name
    """

    precision: Literal["fp32", "fp16"] = "fp16"
    frames: Frames = "uint8"
    leaky_relu: bool = False

    def __post_init__(self) -> None:
        if self.precision not in ("fp32", "fp16"):
            raise UsageError(f"expected a precision of fp32 or fp16, got {self.precision!r}")
        if self.frames not in FRAMES:
            raise UsageError(f"expected frames of {' or '.join(FRAMES)}, got {self.frames!r}")


def onnx_bytes(model: Model, options: Options | None = None) -> bytes:
    """The model as a serialised ONNX ModelProto, opset 18; the same bytes for the same weights and options.

    Shapes:  any batch, height and width; see `Options`, whose defaults None means
    Cost:    0.2 s of one core for the default model
    Raises:  BackendUnavailable without the package onnx; UsageError for a network that has layers without a counterpart
             here, or weights beyond float16
    """
    try:
        import onnx  # noqa: F401
    except ImportError:
        raise BackendUnavailable("the package onnx is not installed; pip install 'srgan-fast[onnx]'") from None
    options = options or Options()
    graph = _Graph()
    # Its end before the last shuffle is 1.2 times as fast in OpenVINO and 1.4 times in onnxruntime, float32 on a CPU; a
    # GPU leaves blocks of three outputs as empty.
    network = without_last_shuffle(folded(model.network).cpu().float())
    frame = _frames_in(graph, options, model.info.input_range)
    result = _Walk(graph, network, options).run(frame)
    _frames_out(graph, result, options, model.info.output_range)
    return graph.finished(_metadata(model, options)).SerializeToString(deterministic=True)


def _metadata(model: Model, options: Options) -> dict[str, str]:
    """What a program needs to know of the file, in text; nothing of the machine, the folder or the time."""
    info = model.info
    radius = receptive_radius(model.network)
    licence = info.recipe.get("licence", "not stated")
    if info.name in bundled() and load(info.name).info.digest == info.digest:
        licence = "Apache-2.0"
    stated = {
        "format": str(_FORMAT),
        "frames": "uint8 NHWC RGB" if options.frames == "uint8" else "float32 NCHW RGB in [0, 1]",
        "licence": str(licence),
        "model": re.split(r"[\\/]", info.name)[-1],  # a user may have named it by its path
        "precision": options.precision,
        "radius": "none" if radius is None else str(radius),
        "scale": str(info.scale),
        "weights": info.digest,
    }
    if radius is None:
        stated["radius_reason"] = "InstanceNorm looks at the whole frame, so no tile can stand for a part of it"
    return stated


# --- what is around the network -----------------------------------------------------------------------------------


def _frames_in(graph: _Graph, options: Options, colours: Range) -> str:
    """Frames as they come -> float32 [n, 3, h, w] in the network's range."""
    low, high = (bound.double().numpy() for bound in bounds(colours))
    if options.frames == "uint8":
        frames = graph.input(_UINT8, ["batch", "height", "width", 3])
        # Engines take uint8 at their ends only, so it is left at once and entered last; transposes are of floats.
        value = graph.cast("frames.float", frames, _FLOAT32)
        value = graph.node("Transpose", "frames.nchw", value, perm=[0, 3, 1, 2])
        return _affine(graph, "frames", value, (high - low) / LEVELS[torch.uint8], low)
    return _affine(graph, "frames", graph.input(_FLOAT32, ["batch", 3, "height", "width"]), high - low, low)


def _frames_out(graph: _Graph, result: str, options: Options, colours: Range) -> None:
    """The network's result [n, 3, h, w] in its range -> frames: floor(clamp(v * 255, 0, 255) + 0.5) for uint8."""
    low, high = (bound.double().numpy() for bound in bounds(colours))
    levels = LEVELS[torch.uint8] if options.frames == "uint8" else 1
    gain = levels / (high - low)
    value = graph.as_float("result", result, _FLOAT32)
    value = _affine(graph, "pixels", value, gain, -low * gain)
    ends = (graph.constant(f"pixels.{name}", end, _FLOAT32) for name, end in (("least", 0), ("most", levels)))
    if options.frames == "float":
        graph.node("Clip", OUTPUT, value, *ends)
        graph.output(OUTPUT, ["batch", 3, "sr_height", "sr_width"])
        return
    value = graph.node("Clip", "pixels.clamped", value, *ends)
    value = graph.node("Add", "pixels.up", value, graph.constant("pixels.half", 0.5, _FLOAT32))
    value = graph.node("Floor", "pixels.whole", value)
    value = graph.node("Transpose", "pixels.nhwc", value, perm=[0, 2, 3, 1])
    graph.output(graph.cast(OUTPUT, value, _UINT8), ["batch", "sr_height", "sr_width", 3])


def _affine(graph: _Graph, name: str, value: str, gain: NDArray[Any], offset: NDArray[Any]) -> str:
    """value * gain + offset, without what changes nothing."""
    if (gain != 1).any():
        value = graph.node("Mul", f"{name}.scaled", value, graph.constant(f"{name}.gain", gain, _FLOAT32))
    if (offset != 0).any():
        value = graph.node("Add", f"{name}.shifted", value, graph.constant(f"{name}.offset", offset, _FLOAT32))
    return value


# --- the network ------------------------------------------------------------------------------------------------


class _Tracer(fx.Tracer):
    """Traces in its own thread alone: while it does, fx has every module of the process come by here."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """What another thread calls it gets, and it is none of the trace's."""
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """The same for what another thread looks up."""
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)


class _Walk:
    """Writes a network's operations in the order in which they run, each under the name of its module.

    Everything up to the last convolution is in the precision that was asked for. What is done to its result is in
    float32, as is an enlargement of the frame that is added to it: there each rounding is one of the picture.
    """

    def __init__(self, graph: _Graph, network: nn.Module, options: Options) -> None:
        self.graph, self.network, self.options = graph, network, options
        self.modules = dict(network.named_modules())
        self.kind: np.dtype[Any] = np.dtype(np.float16) if options.precision == "fp16" else _FLOAT32
        self.values: dict[fx.Node, str | None] = {}

    def run(self, frame: str) -> str:
        """The value that holds the network's result on `frame`.

        Raises:  UsageError for an operation that has no counterpart here
        """
        with _TRACING:
            operations = list(_Tracer().trace(self.network).nodes)
        convs = (i for i, operation in enumerate(operations) if isinstance(self._subject(operation), nn.Conv2d))
        last = max(convs, default=-1)
        for i, operation in enumerate(operations):
            if operation.op == "placeholder":
                self.values[operation] = frame
            elif operation.op == "output":
                value = self.values[operation.args[0]]
                assert value is not None
                return value
            else:
                subject = self._subject(operation)
                write = _WRITERS.get(type(subject) if isinstance(subject, nn.Module) else subject)
                if write is None:
                    raise UsageError(
                        f"expected a network of layers that can be exported, got {operation.format_node()};"
                        " only those of the project's own networks are"
                    )
                self.values[operation] = write(self, operation)
            if i == last:
                self.kind = _FLOAT32
        raise AssertionError("a trace ends in its output")

    def _subject(self, operation: fx.Node) -> Any:
        """The module, the function, or the name of the method that an operation calls."""
        return self.modules[str(operation.target)] if operation.op == "call_module" else operation.target

    def name(self, operation: fx.Node) -> str:
        """That of the module that is called, else of the operation within the module that it is in."""
        if operation.op == "call_module":
            return str(operation.target)
        inside = [path for path, _ in operation.meta.get("nn_module_stack", {}).values() if path]
        name = ".".join([*inside[-1:], self._subject(operation).__name__])
        return next(free for free in self._numbered(name) if free not in self.graph)

    @staticmethod
    def _numbered(name: str) -> Iterator[str]:
        yield name
        yield from (f"{name}_{i}" for i in itertools.count(2))

    def value(self, operation: fx.Node, index: int = 0, kind: np.dtype[Any] | None = None) -> str:
        """An argument that is a value, in the precision that holds here, or in another."""
        value = self.values[operation.args[index]]  # type: ignore[index]
        assert value is not None
        return self.graph.as_float(value, value, kind or self.kind)

    def constant(self, name: str, array: ArrayLike) -> str:
        return self.graph.constant(name, array, self.kind)

    # One method an operation.

    def conv(self, operation: fx.Node) -> str:
        conv, name = self._subject(operation), self.name(operation)
        assert conv.padding_mode == "zeros"
        (top, left), bias = conv.padding, conv.bias
        weight = conv.weight.numpy()
        if self.kind != _FLOAT32:
            weight = _carried(weight, self.kind)
        parameters = [self.constant(f"{name}.weight", weight)]
        if bias is not None:
            parameters.append(self.constant(f"{name}.bias", bias.numpy()))
        return self.graph.node(
            "Conv",
            name,
            self.value(operation),
            *parameters,
            kernel_shape=list(conv.kernel_size),
            strides=list(conv.stride),
            pads=[top, left, top, left],
            dilations=list(conv.dilation),
            group=conv.groups,
        )

    def prelu(self, operation: fx.Node) -> str:
        name, slopes = self.name(operation), self._subject(operation).weight.numpy()
        if self.options.leaky_relu and slopes.size == 1:
            return self.graph.node("LeakyRelu", name, self.value(operation), alpha=float(slopes[0]))
        weight = self.constant(f"{name}.weight", slopes.reshape(-1, 1, 1))
        return self.graph.node("PRelu", name, self.value(operation), weight)

    def leaky_relu(self, operation: fx.Node) -> str:
        called = self._subject(operation)
        slope: Any = operation.kwargs["negative_slope"] if called is F.leaky_relu else called.negative_slope
        return self.graph.node("LeakyRelu", self.name(operation), self.value(operation), alpha=float(slope))

    def shuffle(self, operation: fx.Node) -> str:
        called = self._subject(operation)
        r = called.upscale_factor if isinstance(called, nn.PixelShuffle) else operation.args[1]
        value = self.values[operation.args[0]]  # type: ignore[index]
        assert value is not None
        # It only moves, so it does in whatever precision comes: half the bytes where that is float16.
        return self.graph.node("DepthToSpace", self.name(operation), value, blocksize=r, mode="CRD")

    def instance_norm(self, operation: fx.Node) -> str:
        norm, name = self._subject(operation), self.name(operation)
        weight, bias = (torch.ones(norm.num_features), torch.zeros(norm.num_features))
        if norm.affine:
            weight, bias = norm.weight, norm.bias
        scale, shift = (
            self.constant(f"{name}.{key}", value.numpy()) for key, value in (("weight", weight), ("bias", bias))
        )
        return self.graph.node(
            "InstanceNormalization", name, self.value(operation), scale, shift, epsilon=float(norm.eps)
        )

    def interpolate(self, operation: fx.Node) -> str:
        name, given = self.name(operation), operation.kwargs
        factor, mode = given["scale_factor"], given["mode"]
        assert isinstance(factor, (int, float))
        if mode == "nearest":
            way = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        else:
            assert (mode, given["align_corners"]) == ("bilinear", False)
            way = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
        scales = self.graph.constant(f"{name}.scales", [1.0, 1.0, factor, factor], _FLOAT32)
        # The empty name: no region of interest.
        return self.graph.node("Resize", name, self.value(operation, kind=_FLOAT32), "", scales, **way)

    def simple(self, operation: fx.Node) -> str:
        """An operation on values alone, that has no parameters."""
        subject = self._subject(operation)
        op = {nn.ReLU: "Relu", F.relu: "Relu", operator.add: "Add", torch.tanh: "Tanh"}
        inputs = [self.value(operation, i) for i in range(len(operation.args))]
        key = type(subject) if isinstance(subject, nn.Module) else subject
        return self.graph.node(op[key], self.name(operation), *inputs)

    def same(self, operation: fx.Node) -> str | None:
        """What changes no value: an Identity, and `.to(other.dtype)`, for precisions are chosen here."""
        return self.values[operation.args[0]]  # type: ignore[index]

    def attribute(self, operation: fx.Node) -> None:
        """`.dtype` of a value, which only `.to` asks for."""
        assert operation.args[1] == "dtype"


def _carried(weight: NDArray[Any], kind: np.dtype[Any]) -> NDArray[Any]:
    """A convolution's weight in a smaller type, in which each tap takes over the rounding error of the one before it.

    Neighbouring pixels are alike, so it is the sum of a kernel's taps that shows, and carried errors leave it right to
    one rounding. In float16 that takes 10 dB off what the weights of the default model add to its error.

    Shapes:  [o, i, kh, kw]
    """
    taps = weight.astype(np.float64).reshape(*weight.shape[:2], -1)
    rounded, carry = np.zeros(taps.shape, kind), np.zeros(taps.shape[:2])
    with np.errstate(over="ignore", invalid="ignore"):  # what is beyond the type is refused where constants are written
        for i in range(taps.shape[2]):
            wanted = taps[..., i] + carry
            rounded[..., i] = np.where(taps[..., i] == 0, 0, wanted)  # a tap that is not there stays away
            carry = wanted - rounded[..., i]
    return rounded.reshape(weight.shape)


_WRITERS: dict[Any, Callable[[_Walk, fx.Node], str | None]] = {
    nn.Conv2d: _Walk.conv,
    nn.PReLU: _Walk.prelu,
    nn.LeakyReLU: _Walk.leaky_relu,
    F.leaky_relu: _Walk.leaky_relu,
    nn.PixelShuffle: _Walk.shuffle,
    F.pixel_shuffle: _Walk.shuffle,
    nn.InstanceNorm2d: _Walk.instance_norm,
    F.interpolate: _Walk.interpolate,
    nn.ReLU: _Walk.simple,
    F.relu: _Walk.simple,
    operator.add: _Walk.simple,
    torch.tanh: _Walk.simple,
    nn.Identity: _Walk.same,
    "to": _Walk.same,
    getattr: _Walk.attribute,
}


# --- nodes ------------------------------------------------------------------------------------------------------


class _Graph:
    """Nodes and constants in the order in which they are written; a node gives one value, which has the node's name."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._kinds: dict[str, np.dtype[Any]] = {}  # of every value and constant

    def __contains__(self, name: str) -> bool:
        return name in self._kinds

    def input(self, kind: np.dtype[Any], shape: list[str | int]) -> str:
        self._inputs.append(_described(INPUT, kind, shape))
        self._kinds[INPUT] = kind
        return INPUT

    def output(self, value: str, shape: list[str | int]) -> None:
        self._outputs.append(_described(value, self._kinds[value], shape))

    def constant(self, name: str, array: ArrayLike, kind: np.dtype[Any]) -> str:
        """A constant of a float type.

        Raises:  UsageError for values beyond that type
        """
        from onnx import numpy_helper

        with np.errstate(over="ignore"):
            values = np.asarray(array).astype(kind, order="C")
        if not np.isfinite(values).all():
            most = np.finfo(kind).max
            raise UsageError(f"expected weights within {kind}, {most:g} at most, got more in {name}; take fp32")
        self._constants.append(numpy_helper.from_array(values, name))
        return self._named(name, kind)

    def node(self, op: str, name: str, *inputs: str, **attributes: Any) -> str:
        """One operation, whose result has the type of its first input."""
        from onnx import helper

        self._nodes.append(helper.make_node(op, list(inputs), [name], name, **attributes))
        return self._named(name, self._kinds[inputs[0]])

    def cast(self, name: str, value: str, kind: np.dtype[Any]) -> str:
        from onnx import helper

        self.node("Cast", name, value, to=helper.np_dtype_to_tensor_dtype(kind))
        self._kinds[name] = kind
        return name

    def as_float(self, name: str, value: str, kind: np.dtype[Any]) -> str:
        """A value in a float type: itself where it has that type already, else `name` with the type behind it."""
        if self._kinds[value] == kind:
            return value
        name = f"{name}.{kind}"
        return name if name in self._kinds else self.cast(name, value, kind)

    def finished(self, metadata: dict[str, str]) -> ModelProto:
        from onnx import helper

        graph = helper.make_graph(self._nodes, "srgan-fast", self._inputs, self._outputs, self._constants)
        # No version of ours: an update would change the digest, and so cost the engines that were built.
        model = helper.make_model(
            graph,
            producer_name="srgan-fast",
            ir_version=_IR_VERSION,
            opset_imports=[helper.make_opsetid("", OPSET)],
        )
        helper.set_model_props(model, dict(sorted(metadata.items())))
        return model

    def _named(self, name: str, kind: np.dtype[Any]) -> str:
        assert name not in self._kinds, f"two values called {name}"
        self._kinds[name] = kind
        return name


def _described(name: str, kind: np.dtype[Any], shape: list[str | int]) -> Any:
    from onnx import helper

    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(kind), shape)
