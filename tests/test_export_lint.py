"""The lint of exported graphs: faults that are planted, each one that ONNX's own checker may let pass, are found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from models import model_of
from onnx import TensorProto, helper, numpy_helper

from srgan_fast.errors import ParityError
from srgan_fast.export import INPUT, onnx_bytes
from srgan_fast.export.verify import check_graph
from srgan_fast.model import (
    CompactConfig,
    Generator,
    GeneratorConfig,
    MSRResNet,
    MSRResNetConfig,
    SRVGGNetCompact,
)


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    network = Generator(GeneratorConfig(blocks=1, width=8))
    return onnx_bytes(model_of(network, tmp_path_factory.mktemp("lint")))


@pytest.fixture(scope="module")
def enlarging(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Graphs that add the enlarged frame."""
    folder = tmp_path_factory.mktemp("enlarging")
    networks = {
        "nearest": SRVGGNetCompact(CompactConfig(blocks=1, width=8)),
        "bilinear": MSRResNet(MSRResNetConfig(blocks=1, width=8)),
    }
    return {name: onnx_bytes(model_of(network, folder)) for name, network in networks.items()}


def node_of(model: onnx.ModelProto, op: str) -> Any:
    return next(node for node in model.graph.node if node.op_type == op)


def set_attribute(node: Any, name: str, value: Any) -> None:
    kept = [item for item in node.attribute if item.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def set_constant(model: onnx.ModelProto, name: str, value: Any) -> None:
    constant = next(constant for constant in model.graph.initializer if constant.name == name)
    kind = helper.tensor_dtype_to_np_dtype(constant.data_type)
    constant.CopyFrom(numpy_helper.from_array(np.asarray(value, kind), name))


def another_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 17


def another_domain(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    node_of(model, "Floor").domain = "com.example"


def data_elsewhere(model: onnx.ModelProto) -> None:
    constant = model.graph.initializer[0]
    constant.data_location = TensorProto.EXTERNAL
    constant.external_data.add(key="location", value="weights.bin")


def an_operator_that_is_not_listed(model: onnx.ModelProto) -> None:
    node_of(model, "Floor").op_type = "Erf"


def uint8_inside(model: onnx.ModelProto) -> None:
    """Transposed before it is cast: one operation less, and right for onnxruntime."""
    cast, transpose = model.graph.node[:2]
    transpose.input[0], transpose.output[0] = INPUT, "moved"
    cast.input[0], cast.output[0] = "moved", "frames.nchw"
    turned = [transpose, cast]
    moved = [helper.make_node(node.op_type, node.input, node.output, node.name) for node in turned]
    for node, old in zip(moved, turned, strict=True):
        node.attribute.extend(old.attribute)
    rest = list(model.graph.node[2:])
    del model.graph.node[:]
    model.graph.node.extend([*moved, *rest])


def the_other_depth_to_space(model: onnx.ModelProto) -> None:
    set_attribute(node_of(model, "DepthToSpace"), "mode", "DCR")


def no_clip(model: onnx.ModelProto) -> None:
    add = next(node for node in model.graph.node if node.name == "pixels.up")
    clip = node_of(model, "Clip")
    add.input[0] = clip.input[0]
    model.graph.node.remove(clip)


def no_floor(model: onnx.ModelProto) -> None:
    node_of(model, "Floor").op_type = "Relu"


def a_clip_to_256(model: onnx.ModelProto) -> None:
    set_constant(model, "pixels.most", 256)


def a_half_that_is_not(model: onnx.ModelProto) -> None:
    set_constant(model, "pixels.half", 0.0)


def a_constant_that_is_no_number(model: onnx.ModelProto) -> None:
    set_constant(model, "head.0.bias", [np.nan] * 8)


def a_whole_number(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.int64), "count"))


def a_slope_that_is_computed(model: onnx.ModelProto) -> None:
    prelu = node_of(model, "PRelu")
    at = list(model.graph.node).index(prelu)
    slope = helper.make_node("Relu", [prelu.input[1]], ["slope"], "slope")
    prelu.input[1] = "slope"
    model.graph.node.insert(at, slope)


def a_fixed_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def a_size_without_a_name(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[1].ClearField("dim_param")


def another_name(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = "image"
    node_of(model, "Cast").input[0] = "image"


def another_end(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("head.0", TensorProto.FLOAT16, ["n", 8, "h", "w"]))


def a_path_in_the_metadata(model: onnx.ModelProto) -> None:
    model.metadata_props.add(key="source", value="file:/home/someone/weights.pth")


def a_path_in_a_name(model: onnx.ModelProto) -> None:
    node_of(model, "Floor").name = "C:\\models\\floor"


def a_remark(model: onnx.ModelProto) -> None:
    node_of(model, "Floor").doc_string = "line 12"


def a_stack_trace(model: onnx.ModelProto) -> None:
    node_of(model, "Floor").metadata_props.add(key="stack_trace", value="model.py:12")


FAULTS: list[tuple[Callable[[onnx.ModelProto], None], str]] = [
    (another_opset, "expected opset 18"),
    (another_domain, "expected opset 18 and no other domain"),
    (data_elsewhere, "lies in another file|external"),
    (an_operator_that_is_not_listed, "Erf pixels.whole: expected an operator of Add"),
    (uint8_inside, "Transpose frames.nchw: lr is UINT8, which only a Cast at an end of the graph may be and 2 more"),
    (the_other_depth_to_space, "expected mode CRD, which is PixelShuffle, got DCR"),
    (no_clip, "expected .*Clip.* before UINT8"),
    (no_floor, "expected .*Floor.* before UINT8"),
    (a_clip_to_256, r"255.* before UINT8, got .*256"),
    (a_half_that_is_not, r"0\.5.* before UINT8, got .*'Add', \[0\.0\]"),
    (a_constant_that_is_no_number, "head.0.bias holds NaN or infinity"),
    (a_whole_number, "constant count: expected FLOAT or FLOAT16, got INT64"),
    (a_slope_that_is_computed, "PRelu head.1: expected constants, got slope"),
    (a_fixed_batch, "lr: expected sizes .*batch.*, got \\[1"),
    (a_size_without_a_name, "sr: expected sizes .*sr_height.*, got .*None"),
    (another_name, "expected one end called lr, got .*image"),
    (another_end, "expected one end called sr, got .*head.0"),
    (a_path_in_the_metadata, "expected no path of a machine"),
    (a_path_in_a_name, "expected no path of a machine"),
    (a_remark, "pixels.whole: expected no doc_string"),
    (a_stack_trace, "pixels.whole: expected metadata of the file only"),
]


@pytest.mark.parametrize(("plant", "said"), FAULTS, ids=[plant.__name__ for plant, _ in FAULTS])
def test_planted_faults_are_found(plant: Callable[[onnx.ModelProto], None], said: str, content: bytes) -> None:
    check_graph(content)
    graph = onnx.load_model_from_string(content)
    plant(graph)
    with pytest.raises(ParityError, match=said):
        check_graph(graph.SerializeToString())


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [("nearest", "nearest_mode", "ceil"), ("bilinear", "coordinate_transformation_mode", "align_corners")],
)
def test_another_resize_is_found(kind: str, key: str, value: str, enlarging: dict[str, bytes]) -> None:
    check_graph(enlarging[kind])
    graph = onnx.load_model_from_string(enlarging[kind])
    set_attribute(node_of(graph, "Resize"), key, value)
    with pytest.raises(ParityError, match=r"expected nearest .* or linear"):
        check_graph(graph.SerializeToString())


def test_two_float_types_in_one_operation_are_found(enlarging: dict[str, bytes]) -> None:
    """Which ONNX allows in a Resize, where the frame may be in half and its scales are not."""
    graph = onnx.load_model_from_string(enlarging["nearest"])
    resize, add = node_of(graph, "Resize"), next(node for node in graph.graph.node if node.name == "add")
    at = list(graph.graph.node).index(resize)
    down = helper.make_node("Cast", [resize.input[0]], ["half"], "half", to=TensorProto.FLOAT16)
    up = helper.make_node("Cast", [resize.output[0]], ["whole"], "whole", to=TensorProto.FLOAT)
    add.input[1], resize.input[0] = "whole", "half"
    graph.graph.node.insert(at + 1, up)
    graph.graph.node.insert(at, down)
    with pytest.raises(ParityError, match="Resize interpolate: expected one float type, got FLOAT and FLOAT16"):
        check_graph(graph.SerializeToString())
