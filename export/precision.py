"""Forms of an exported model that are made in memory: inlined, FP16. Imports no torch.

The file stays FP32 with functions; these are for the libraries that want something else.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import onnx.inliner  # not reachable by `import onnx` alone
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from fastrestore.errors import ModelError


class Convolution(NamedTuple):
    """What must agree between an ONNX graph and the network that TensorRT parsed from it.

    A build that succeeds proves little: the parser can drop a dilation without a message.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]  # top, left, bottom, right


def inline(model: ModelProto) -> ModelProto:
    """Return the model with every function call replaced by its body, and unique node names.

    Raises:
        ModelError: A function is left, which onnx does silently when opsets differ.
    """
    flat: ModelProto = onnx.inliner.inline_local_functions(model)
    if flat.functions:
        raise ModelError(f"model: {len(flat.functions)} functions cannot be inlined; export again")
    for i, node in enumerate(flat.graph.node):
        node.name = f"{i}.{node.op_type}"
    return flat


def convolutions(model: ModelProto) -> list[Convolution]:
    """Return the convolutions of the inlined graph (transposed ones apart), sorted."""
    found = []
    for node in inline(model).graph.node:
        if node.op_type == "Conv":
            a = {x.name: tuple(x.ints) for x in node.attribute if x.type == AttributeProto.INTS}
            flat = (1, 1)
            kernel, strides = a["kernel_shape"], a.get("strides", flat)
            dilations, pads = a.get("dilations", flat), a.get("pads", (0, 0, 0, 0))
            found.append(Convolution(kernel, strides, dilations, pads))
    return sorted(found)


def to_fp16(model: ModelProto) -> ModelProto:
    """Return an FP16 copy: weights, constants and casts. Works with functions and inlined.

    Every op may run in FP16 (energies are kept in units of sigma^2 + 9 levels), so only the
    scales of Resize, which the operator wants in FP32, stay; FP32 inputs (`sigma`) get a cast.

    Args:
        model: FP32, as `fastrestore.export.graph.build` makes it; not changed.

    Raises:
        ModelError: A weight is beyond FP16's range.
    """
    half = ModelProto()
    half.CopyFrom(model)
    nodes = list(_all_nodes(half))
    scales = {n.input[2] for n in nodes if n.op_type == "Resize" and len(n.input) > 2}
    for tensor in half.graph.initializer:
        if tensor.name not in scales:
            _to_half(tensor)
    for node in nodes:
        for attribute in node.attribute:
            if node.op_type == "Constant" and node.output[0] not in scales:
                _to_half(attribute.t)
            elif node.op_type == "Cast" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
    for value in half.graph.input:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            _cast_input(half, value.name)
    del half.graph.value_info[:]  # inferred FP32 types would contradict
    return half


def _all_nodes(model: ModelProto) -> Iterator[NodeProto]:
    yield from model.graph.node
    for function in model.functions:
        yield from function.node


def _cast_input(model: ModelProto, name: str) -> None:
    cast = f"{name}.half"
    for node in model.graph.node:
        node.input[:] = [cast if i == name else i for i in node.input]
    to = TensorProto.FLOAT16
    model.graph.node.insert(0, helper.make_node("Cast", [name], [cast], cast, to=to))


def _to_half(tensor: TensorProto) -> None:
    if tensor.data_type != TensorProto.FLOAT:
        return
    array = numpy_helper.to_array(tensor)
    limit = float(np.finfo(np.float16).max)
    largest = float(np.abs(array).max(initial=0))
    if not largest <= limit:
        raise ModelError(f"{tensor.name}: {largest:g} is beyond FP16; use FP32 or train again")
    tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float16), tensor.name))
