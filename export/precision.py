"""Forms of an exported model that are made in memory: inlined, FP16, BF16. Imports no torch.

The file stays FP32 with functions; these are for the libraries that want something else.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import onnx.inliner  # not reachable by `import onnx` alone
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from fastrestore.errors import ModelError

BF16_OPSET = 22  # the first whose Conv, Round and HardSigmoid take BF16
_BF16_OPS = ("Conv", "Relu", "Add")  # all that a network is made of beside `up`


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


def convolutions(model: ModelProto, kind: str = "Conv") -> list[Convolution]:
    """Return the convolutions of the inlined graph, sorted: `Conv` or `ConvTranspose`."""
    found = []
    for node in inline(model).graph.node:
        if node.op_type == kind:
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


def to_bf16(model: ModelProto) -> ModelProto:
    """Return a copy whose network is BF16, for activations that pass FP16's range.

    BF16 reaches as far as FP32 but has eight significant bits: a base between 0 and 1 would be
    half a level off. So only what lies between the first and the last layer with weights is
    converted; the pyramid, the packing and the unpacking stay FP32. So do transposed convolutions:
    TensorRT-RTX 1.7 cannot build them in BF16. ONNX Runtime's CPU has no BF16 convolution at all.

    Args:
        model: FP32, with functions or inlined, not quantised; not changed.

    Raises:
        ModelError: The network has another operator than those a generator is made of.
    """
    low = ModelProto()
    low.CopyFrom(model)
    bf16 = helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16)
    nodes = low.graph.node
    pairs = zip(nodes, network_nodes(low), strict=True)
    inside = [own and node.op_type != "ConvTranspose" for node, own in pairs]
    network = [node for node, own in zip(nodes, inside, strict=True) if own]
    weights = weight_names(low) & {i for node in network for i in node.input}
    bodies = {f.name: f for f in low.functions}
    for node in network:
        for inner in bodies[node.op_type].node if node.op_type in bodies else [node]:
            if inner.op_type not in _BF16_OPS:
                raise ModelError(
                    f"model: {inner.op_type} in the network has no BF16 form here; use fp16 or fp32"
                )
    for tensor in low.graph.initializer:
        if tensor.name in weights:
            array = numpy_helper.to_array(tensor).astype(bf16)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    _cast_network(low, inside, weights)
    for part in (low, *low.functions):
        for opset in part.opset_import:
            if opset.domain == "":
                opset.version = max(opset.version, BF16_OPSET)
    del low.graph.value_info[:]
    return low


def _cast_network(model: ModelProto, inside: Sequence[bool], weights: Container[str]) -> None:
    """Put a cast where a value enters the network or leaves it."""
    nodes = list(model.graph.node)
    made = {o for node, own in zip(nodes, inside, strict=True) if own for o in node.output}
    casts: dict[str, str] = {}
    out: list[NodeProto] = []
    for node, own in zip(nodes, inside, strict=True):
        suffix, to = ("bf16", TensorProto.BFLOAT16) if own else ("fp32", TensorProto.FLOAT)
        for i, name in enumerate(node.input):
            if not name or name in weights or (name in made) == own:
                continue
            if name not in casts:
                casts[name] = f"{name}.{suffix}"
                out.append(helper.make_node("Cast", [name], [casts[name]], casts[name], to=to))
            node.input[i] = casts[name]
        out.append(node)
    del model.graph.node[:]
    model.graph.node.extend(out)


def layer_of(node: NodeProto) -> str | None:
    """Return a convolution's name in the generator, `encoder.1.0.conv3`; None without weights."""
    if node.op_type not in ("Conv", "ConvTranspose") or ".weight" not in node.input[1]:
        return None
    name: str = node.input[1].partition(".weight")[0]
    return name.removesuffix(".conv")


def weight_names(model: ModelProto) -> set[str]:
    """Return the names of the float initialisers: the network's weights and biases."""
    return {t.name for t in model.graph.initializer if t.data_type == TensorProto.FLOAT}


def network_nodes(model: ModelProto) -> list[bool]:
    """Tell for each node of the main graph whether it lies between the first and last weights."""
    weights, nodes = weight_names(model), model.graph.node
    reads = [any(i in weights for i in node.input) for node in nodes]
    after, before = set[str](), set[str]()  # values that weights lead to; that lead to weights
    down, up = [], []
    for node, own in zip(nodes, reads, strict=True):
        down.append(own or any(i in after for i in node.input))
        after.update(node.output if down[-1] else ())
    for node, own in zip(reversed(nodes), reversed(reads), strict=True):
        up.append(own or any(o in before for o in node.output))
        before.update(node.input if up[-1] else ())
    return [d and u for d, u in zip(down, reversed(up), strict=True)]


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
