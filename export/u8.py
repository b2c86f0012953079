"""The INT8 file once more, as ONNX Runtime's CPU runs it fast.

ONNX Runtime merges a convolution, its ReLU and the quantisation behind them into one INT8 operator
only where the zero point is the smallest number of the type, and its x86 kernels want U8 times S8.
TensorRT refuses both U8 and a zero point. So one file has the form that TensorRT takes, and this
rewrite is made in memory when ONNX Runtime loads it. On a CPU without VNNI the sums of U8 times S8
may saturate: measure the quality there before it is used.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from fastrestore.errors import ModelError

_MIDDLE = 128  # U8 for zero: q + 128 has the grid of S8
_FINER = 127 / 255  # step of what is never negative: the same range in twice the levels


def to_u8(model: ModelProto) -> ModelProto:
    """Return a copy whose activations are quantised to U8; weights stay S8.

    What follows a ReLU gets zero point 0 and half the step, the rest zero point 128 and the same
    step: nothing becomes coarser.

    Args:
        model: As `fastrestore.export.quantize.quantize` makes it; not changed.

    Raises:
        ModelError: It has no Q/DQ pair of that form, or one of another form.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    arrays = {t.name: t for t in copy.graph.initializer}
    makers = {o: n for n in copy.graph.node for o in n.output}
    pairs: dict[str, tuple[str, str]] = {}  # quantised value: its new scale and zero point
    for node in copy.graph.node:
        if node.op_type == "QuantizeLinear":
            scale = _symmetric_scale(node, arrays)
            positive = _is_positive(makers.get(node.input[0]), arrays)
            names = (f"{node.output[0]}.u8.scale", f"{node.output[0]}.u8.zero")
            new = scale * np.float32(_FINER) if positive else scale
            zero = np.array(0 if positive else _MIDDLE, np.uint8)
            for name, array in zip(names, (new.astype(scale.dtype), zero), strict=True):
                copy.graph.initializer.append(numpy_helper.from_array(array, name))
            pairs[node.output[0]] = names
            node.input[1:] = names
    if not pairs:
        raise ModelError("model: not quantised; make the INT8 form first")
    for node in copy.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in pairs:
            node.input[1:] = pairs[node.input[0]]
    used = {i for n in copy.graph.node for i in n.input}
    kept = [t for t in copy.graph.initializer if t.name in used]
    del copy.graph.initializer[:]
    copy.graph.initializer.extend(kept)
    del copy.graph.value_info[:]  # may say S8
    return copy


def _symmetric_scale(
    node: NodeProto, arrays: dict[str, TensorProto]
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    tensors = [arrays.get(name) for name in node.input[1:]]
    if len(tensors) == 2 and tensors[0] is not None and tensors[1] is not None:
        scale, zero = (numpy_helper.to_array(t) for t in tensors if t is not None)
        if scale.size == 1 and zero.dtype == np.int8 and not zero.any():
            return scale
    raise ModelError(
        f"model: {node.input[0]} is not quantised to S8 with one scale and zero point 0; "
        "make the INT8 form anew"
    )


def _is_positive(maker: NodeProto | None, arrays: dict[str, TensorProto]) -> bool:
    """Return whether a node never gives a negative value."""
    if maker is None or maker.op_type == "Relu":
        return maker is not None
    if maker.op_type != "Clip" or len(maker.input) < 2 or maker.input[1] not in arrays:
        return False
    return bool(numpy_helper.to_array(arrays[maker.input[1]]).min() >= 0)
