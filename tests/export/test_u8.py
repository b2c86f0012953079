"""The rewrite for ONNX Runtime's CPU: same values, finer after ReLU, one operator a layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from fastrestore.arrays import F32
from fastrestore.errors import ModelError
from fastrestore.export.overflow import exact_session
from fastrestore.export.u8 import to_u8

SCALE = 0.0625
ZERO = np.int8(0)


def value(name: str, channels: int | None = 4) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, 8, 8])


def qdq(name: str, zero: str = "zero") -> list[NodeProto]:
    return [
        helper.make_node("QuantizeLinear", [name, "scale", zero], [f"{name}.q"]),
        helper.make_node("DequantizeLinear", [f"{name}.q", "scale", zero], [f"{name}.dq"]),
    ]


def s8(zero: Any = ZERO) -> ModelProto:
    """x -> Q/DQ -> 1x1 conv -> ReLU -> Q/DQ -> 1x1 conv."""
    rng = np.random.default_rng(0)
    arrays = {
        "scale": np.float32(SCALE),
        "zero": zero,
        "w.scale": np.full(4, 1 / 64, np.float32),
        "w.zero": np.zeros(4, np.int8),
        "w.int8": rng.integers(-64, 65, (4, 4, 1, 1)).astype(np.int8),
        "bias": np.zeros(4, np.float32),
    }
    weights = helper.make_node("DequantizeLinear", ["w.int8", "w.scale", "w.zero"], ["w"], axis=0)
    nodes = [
        weights,
        *qdq("x"),
        helper.make_node("Conv", ["x.dq", "w", "bias"], ["c"], kernel_shape=[1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        *qdq("r"),
        helper.make_node("Conv", ["r.dq", "w", "bias"], ["y"], kernel_shape=[1, 1]),
    ]
    tensors = [numpy_helper.from_array(np.asarray(a), n) for n, a in arrays.items()]
    graph = helper.make_graph(nodes, "g", [value("x")], [value("y")], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)


def array(model: ModelProto, name: str) -> Any:
    return next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == name)


def quantizer(model: ModelProto, name: str) -> NodeProto:
    return next(n for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == name)


def run(model: ModelProto, x: F32, out: str = "y") -> F32:
    result: F32 = exact_session(model, [out]).run([out], {"x": x})[0]
    return result


def test_zero_points_and_scales() -> None:
    u8 = to_u8(s8())
    onnx.checker.check_model(u8, full_check=True)
    for name, zero, scale in (("x", 128, SCALE), ("r", 0, SCALE * 127 / 255)):
        node = quantizer(u8, name)
        assert array(u8, node.input[2]) == zero
        assert array(u8, node.input[2]).dtype == np.uint8
        assert array(u8, node.input[1]) == pytest.approx(scale)
        back = next(n for n in u8.graph.node if n.input[0] == node.output[0])
        assert list(back.input[1:]) == list(node.input[1:])
    assert "zero" not in {t.name for t in u8.graph.initializer}  # no longer used
    assert array(u8, "w.int8").dtype == np.int8


def test_what_has_a_sign_keeps_its_values() -> None:
    x = np.linspace(-9, 9, 256, dtype=np.float32).reshape(1, 4, 8, 8)
    a, b = run(s8(), x, "x.dq"), run(to_u8(s8()), x, "x.dq")
    inside = np.abs(x) < 127 * SCALE
    assert np.array_equal(a[inside], b[inside])
    assert np.abs(b - a).max() <= SCALE  # U8 has -128 as well


def test_what_has_none_becomes_finer() -> None:
    x = np.random.default_rng(1).normal(0, 2, (1, 4, 8, 8)).astype(np.float32)
    model = s8()
    off = [np.abs(run(m, x, "r.dq") - run(m, x, "r")).max() for m in (model, to_u8(model))]
    assert off[0] > 0.4 * SCALE
    assert off[1] < 0.26 * SCALE


def test_a_clip_from_zero_counts_as_positive() -> None:
    for low, zero in ((0, 0), (-1, 128)):
        model = s8()
        clip = next(n for n in model.graph.node if n.op_type == "Relu")
        clip.op_type = "Clip"
        clip.input.append("low")
        model.graph.initializer.append(numpy_helper.from_array(np.array(low, np.float32), "low"))
        u8 = to_u8(model)
        assert array(u8, quantizer(u8, "r").input[2]) == zero


def test_onnx_runtime_makes_integer_convolutions(tmp_path: Path) -> None:
    import onnxruntime as ort

    counts = []
    for i, model in enumerate((s8(), to_u8(s8()))):
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / f"{i}.onnx")
        options.log_severity_level = 3
        ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        ops = [n.op_type for n in onnx.load(tmp_path / f"{i}.onnx").graph.node]
        counts.append(ops.count("QLinearConv"))
        assert "Relu" not in ops
    assert counts == [0, 1]  # the other is a float convolution with its ReLU


def test_the_model_itself_is_not_changed() -> None:
    model = s8()
    before = model.SerializeToString()
    to_u8(model)
    assert model.SerializeToString() == before


def test_other_forms_are_refused() -> None:
    plain = s8()
    del plain.graph.node[:]
    with pytest.raises(ModelError, match="not quantised"):
        to_u8(plain)
    for zero in (np.int8(3), np.uint8(0)):
        with pytest.raises(ModelError, match="x is not quantised to S8"):
            to_u8(s8(zero))
    with pytest.raises(ModelError, match="x is not quantised to S8"):
        to_u8(to_u8(s8()))
