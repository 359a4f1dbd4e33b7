"""What an engine may refuse, or get wrong without a word, in a graph that ONNX's own checker lets pass.

The rules are those of TensorRT's ONNX importer, the strictest of our engines: its table of operators, UINT8 at the
ends of a graph only, one float type in a strongly typed operation, a cast to UINT8 that cuts off and knows no limits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from srgan_fast.export.graph import INPUT, OPSET, OUTPUT

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

# All in FP32 and FP16.
# Source:  onnx-tensorrt, docs/operators.md, from TensorRT 8.4 on
_POINTWISE = frozenset(("Add", "Cast", "Clip", "Floor", "LeakyRelu", "Mul", "PRelu", "Relu", "Tanh"))
_OPERATORS = _POINTWISE | {"Conv", "DepthToSpace", "InstanceNormalization", "Resize", "Transpose"}
# Whose inputs behind the first are to be constants.
_CONSTANT_INPUTS = frozenset(("Clip", "Conv", "InstanceNormalization", "PRelu", "Resize"))
_RESIZE = ({"mode": "nearest", "nearest_mode": "floor"}, {"mode": "linear"})
# floor(clamp(v, 0, 255) + 0.5), from behind
_ROUNDING = [("Floor", []), ("Add", [0.5]), ("Clip", [0.0, 255.0])]
_LOCAL_PATH = re.compile(r"(^|[\s\"'=:(\[,;])(~?/\w|[A-Za-z]:[\\/]|\\\\\w)")


def faults(model: ModelProto) -> list[str]:
    """What is wrong with a graph, a line each: the node, what was expected, what it has.

    Raises:  onnx.shape_inference.InferenceError for a graph whose types do not fit each other
    """
    return [*_outside(model), *_texts(model), *_Types(model).faults()]


def _outside(model: ModelProto) -> Iterator[str]:
    """The parts around the nodes: versions, constants, the ends."""
    graph = model.graph
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    if opsets != {"": OPSET}:
        yield f"expected opset {OPSET} and no other domain, got {opsets}"
    if model.functions:
        yield f"expected no functions, got {len(model.functions)}"
    if model.training_info:
        yield "expected no training part, got one"
    for constant in graph.initializer:
        yield from _constant(constant)
    if graph.sparse_initializer:
        yield "expected dense constants, got sparse ones"
    for value, name in ((graph.input, INPUT), (graph.output, OUTPUT)):
        if [each.name for each in value] != [name]:
            yield f"expected one end called {name}, got {[each.name for each in value]}"
            continue
        yield from _end(value[0])


def _constant(constant: Any) -> Iterator[str]:
    import numpy as np
    from onnx import TensorProto, numpy_helper

    if constant.data_location == TensorProto.EXTERNAL or constant.external_data:
        yield f"constant {constant.name} lies in another file; expected all in this one"
    elif constant.data_type not in (TensorProto.FLOAT, TensorProto.FLOAT16):
        kind = TensorProto.DataType.Name(constant.data_type)
        yield f"constant {constant.name}: expected FLOAT or FLOAT16, got {kind}"
    elif not np.isfinite(numpy_helper.to_array(constant)).all():
        yield f"constant {constant.name} holds NaN or infinity"


def _end(value: Any) -> Iterator[str]:
    """uint8 NHWC or float32 NCHW, three channels, the other sizes open and named."""
    from onnx import TensorProto

    tensor = value.type.tensor_type
    got = [size.dim_param or (size.dim_value if size.HasField("dim_value") else None) for size in tensor.shape.dim]
    rows, columns = ("height", "width") if value.name == INPUT else ("sr_height", "sr_width")
    wanted = {
        TensorProto.UINT8: ["batch", rows, columns, 3],
        TensorProto.FLOAT: ["batch", 3, rows, columns],
    }.get(tensor.elem_type)
    if wanted is None:
        yield f"{value.name}: expected UINT8 or FLOAT, got {TensorProto.DataType.Name(tensor.elem_type)}"
    elif got != wanted:
        yield f"{value.name}: expected sizes {wanted}, got {got}"


def _texts(model: ModelProto) -> Iterator[str]:
    """Names and remarks that came along from the machine on which the file was made."""
    graph = model.graph
    for owner in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        name = getattr(owner, "name", "") or "the file"
        if owner.doc_string:
            yield f"{name}: expected no doc_string, got one"
        # TensorProto has some since onnx 1.17.
        if owner is not model and hasattr(owner, "metadata_props") and owner.metadata_props:
            yield f"{name}: expected metadata of the file only, got {owner.metadata_props[0].key}"
    texts = [model.producer_name, model.producer_version, model.domain, graph.name]
    texts += [text for entry in model.metadata_props for text in (entry.key, entry.value)]
    for node in graph.node:
        texts += [node.name, *node.input, *node.output]
        texts += [each.decode(errors="replace") for item in node.attribute for each in (item.s, *item.strings)]
    for text in dict.fromkeys(texts):
        if _LOCAL_PATH.search(text):
            yield f"expected no path of a machine, got {text!r:.80}"


class _Types:
    """The nodes of a graph with the types of all their values."""

    def __init__(self, model: ModelProto) -> None:
        from onnx import TensorProto, numpy_helper, shape_inference

        self.types = TensorProto
        graph = shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True).graph
        self.nodes = list(graph.node)
        self.kinds = {
            value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input, *graph.output)
        }
        self.constants = {constant.name: constant for constant in graph.initializer}
        self.kinds |= {name: constant.data_type for name, constant in self.constants.items()}
        self.makers = {name: node for node in self.nodes for name in node.output}
        self.ends = {value.name for value in (*graph.input, *graph.output)}
        self._array = numpy_helper.to_array

    def faults(self) -> Iterator[str]:
        for node in self.nodes:
            called = f"{node.op_type} {node.name or node.output[0]}"
            if node.domain or node.op_type not in _OPERATORS:
                yield f"{called}: expected an operator of {', '.join(sorted(_OPERATORS))}"
                continue
            for fault in (*self._values(node), *self._attributes(node)):
                yield f"{called}: {fault}"

    def _values(self, node: NodeProto) -> Iterator[str]:
        floats = (self.types.FLOAT, self.types.FLOAT16)
        values = [name for name in (*node.input, *node.output) if name]
        for name in values:
            kind = self.kinds.get(name)
            if kind == self.types.UINT8:
                if node.op_type != "Cast" or name not in self.ends:
                    yield f"{name} is UINT8, which only a Cast at an end of the graph may be"
            elif kind not in floats:
                yield f"expected {name} in FLOAT or FLOAT16, got {self.types.DataType.Name(kind or 0)}"
        if node.op_type != "Cast" and len({self.kinds.get(name) for name in values} & set(floats)) > 1:
            yield "expected one float type, got FLOAT and FLOAT16"
        if node.op_type in _CONSTANT_INPUTS and (loose := {*node.input[1:]} - {""} - self.constants.keys()):
            yield f"expected constants, got {', '.join(sorted(loose))}"

    def _attributes(self, node: NodeProto) -> Iterator[str]:
        from onnx import helper

        attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        texts = {name: value.decode() for name, value in attributes.items() if isinstance(value, bytes)}
        if node.op_type == "DepthToSpace" and texts.get("mode") != "CRD":
            yield f"expected mode CRD, which is PixelShuffle, got {texts.get('mode', 'DCR, the default')}"
        if node.op_type == "Resize":
            way = {key: value for key, value in texts.items() if key != "coordinate_transformation_mode"}
            place = texts.get("coordinate_transformation_mode", "half_pixel")
            if way not in _RESIZE or place != ("asymmetric" if way["mode"] == "nearest" else "half_pixel"):
                yield f"expected nearest (asymmetric, floor) or linear (half_pixel), got {texts}"
        if node.op_type == "Cast" and self.kinds.get(node.output[0]) == self.types.UINT8:
            yield from self._to_uint8(node)

    def _to_uint8(self, cast: NodeProto) -> Iterator[str]:
        """Engines cut off what is behind the point, and do as they please outside [0, 256)."""
        steps: dict[str, list[float]] = {}
        node = self.makers.get(cast.input[0])
        while node is not None and len(steps) < 3:
            if node.op_type != "Transpose":
                constants = (self.constants[name] for name in node.input[1:] if name in self.constants)
                steps[node.op_type] = [float(value) for each in constants for value in self._array(each).flat]
            node = self.makers.get(node.input[0])
        if list(steps.items()) != _ROUNDING:
            yield f"expected {_ROUNDING[::-1]} before UINT8, got {list(steps.items())[::-1]}"
