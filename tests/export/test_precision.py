"""FP16 and inlined forms of a model, made in memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from fastrestore.arrays import U8
from fastrestore.errors import ModelError
from fastrestore.export.graph import build
from fastrestore.export.parity import Inputs, random_inputs
from fastrestore.export.precision import (
    Convolution,
    convolutions,
    inline,
    layer_of,
    network_nodes,
    to_bf16,
    to_fp16,
)
from fastrestore.presets import PRESETS
from fastrestore.spec import ModelSpec
from fastrestore.train.generator import Generator


@pytest.fixture(scope="module")
def model() -> ModelProto:
    torch.manual_seed(0)
    generator = Generator(PRESETS["nano"])
    with torch.no_grad():
        for p in generator.parameters():
            if not p.any():
                p.normal_(std=0.02 if p.ndim == 1 else 0.3 * p[0].numel() ** -0.5)
    return build(generator.fuse(), ModelSpec("nano", "nano", 8, 64, 6, "free", "CC0-1.0"))


@pytest.fixture(scope="module")
def half(model: ModelProto) -> ModelProto:
    return to_fp16(model)


class Runner:
    def __init__(self, model: ModelProto) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(model.SerializeToString(), options)

    def __call__(self, x: Inputs) -> tuple[U8, U8]:
        feed = {"frame": x.frame, "mask": x.mask, "state": x.state, "sigma": x.sigma}
        restored, state = self.session.run(None, feed)
        return restored, state


@pytest.fixture(scope="module")
def run(model: ModelProto) -> Runner:
    return Runner(model)


@pytest.fixture(scope="module")
def run_half(half: ModelProto) -> Runner:
    return Runner(half)


def nodes(model: ModelProto) -> Iterator[NodeProto]:
    yield from model.graph.node
    for f in model.functions:
        yield from f.node


def worst(a: U8, b: U8) -> int:
    return int(np.abs(a.astype(int) - b).max())


def still(frame: U8, mask: U8, sigma: float = 0.0) -> Inputs:
    state = np.zeros((*frame.shape[:3], 4), np.uint8)
    return Inputs(frame, mask, state, np.full(len(frame), sigma, np.float32))


def test_only_the_scales_of_resize_stay_fp32(half: ModelProto) -> None:
    onnx.checker.check_model(half, full_check=True)
    scales = {n.input[2] for n in nodes(half) if n.op_type == "Resize"}
    assert scales
    for node in nodes(half):
        for a in node.attribute:
            if node.op_type == "Constant" and a.t.data_type == TensorProto.FLOAT:
                assert node.output[0] in scales
            assert not (node.op_type == "Cast" and a.i == TensorProto.FLOAT)
    kinds = {t.data_type for t in half.graph.initializer}
    assert kinds == {TensorProto.FLOAT16, TensorProto.INT64}


def test_the_model_itself_is_not_changed(model: ModelProto) -> None:
    before = model.SerializeToString()
    to_fp16(model)
    inline(model)
    assert model.SerializeToString() == before


def test_ends_keep_their_types(model: ModelProto, half: ModelProto) -> None:
    assert list(half.graph.input) == list(model.graph.input)
    assert list(half.graph.output) == list(model.graph.output)


def test_fp16_stays_within_a_level_of_fp32(run: Runner, run_half: Runner) -> None:
    for x in random_inputs(8, np.random.default_rng(5)):
        (restored, state), (restored16, state16) = run(x), run_half(x)
        assert worst(restored, restored16) <= 1
        assert worst(state, state16) <= 2


def test_fp16_inlined_equals_fp16_with_functions(model: ModelProto, run_half: Runner) -> None:
    flat = Runner(to_fp16(inline(model)))
    x = list(random_inputs(8, np.random.default_rng(6)))[9]
    assert all(map(np.array_equal, flat(x), run_half(x)))


def test_known_pixels_are_exact_in_fp16(run_half: Runner) -> None:
    frame = np.arange(256, dtype=np.uint8).repeat(3 * 16).reshape(1, 64, 64, 3)
    mask = np.zeros((1, 64, 64, 1), np.uint8)
    mask[:, 20:30, 20:50] = 255
    restored, state = run_half(still(frame, mask))
    known = mask[..., 0] == 0
    assert np.array_equal(restored[known], frame[known])
    assert np.array_equal(state[..., :3][known], frame[known])


def test_no_noise_strength_overflows_in_fp16(run: Runner, run_half: Runner) -> None:
    x = list(random_inputs(8, np.random.default_rng(7)))[9]
    for sigma in (0.05, 100.0, 254.0):
        strong = Inputs(x.frame, x.mask, x.state, np.full_like(x.sigma, sigma))
        (restored, state), (restored16, state16) = run(strong), run_half(strong)
        assert worst(restored, restored16) <= 2
        assert worst(state, state16) <= 2


def test_a_white_picture_does_not_wrap_to_black(run_half: Runner) -> None:
    rng = np.random.default_rng(8)
    frame = np.full((3, 72, 88, 3), 255, np.uint8)
    mask = (rng.random((3, 72, 88, 1)) < [[[[0.2]]], [[[0.6]]], [[[0.97]]]]).astype(np.uint8)
    _, state = run_half(still(frame, mask))
    assert state[..., :3].min() >= 253


def test_weight_beyond_fp16_is_refused(model: ModelProto) -> None:
    big = ModelProto()
    big.CopyFrom(model)
    name = big.graph.initializer[2].name
    big.graph.initializer[2].CopyFrom(numpy_helper.from_array(np.float32([7e4]), name))
    with pytest.raises(ModelError, match=f"{name}: 70000 is beyond FP16"):
        to_fp16(big)


def test_inlining_leaves_unique_names_and_no_functions(model: ModelProto) -> None:
    flat = inline(model)
    assert not flat.functions
    assert {n.domain for n in flat.graph.node} == {""}
    names = [n.name for n in flat.graph.node]
    assert len(set(names)) == len(names)


def test_function_of_another_opset_is_not_left_in_silence(model: ModelProto) -> None:
    mixed = ModelProto()
    mixed.CopyFrom(model)
    for f in mixed.functions:
        f.opset_import[0].version = 18
    with pytest.raises(ModelError, match="cannot be inlined"):
        inline(mixed)


def test_convolutions_reads_geometry_and_defaults() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 9, 9])
    w = numpy_helper.from_array(np.ones((1, 1, 3, 3), np.float32), "w")
    plain = helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[3, 3])
    rich = helper.make_node(
        "Conv", ["y", "w"], ["z"], kernel_shape=[3, 3], dilations=[2, 3], pads=[2, 3, 4, 5],
        strides=[2, 1],
    )  # fmt: skip
    z = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    opset = [helper.make_opsetid("", 19)]
    model = helper.make_model(
        helper.make_graph([plain, rich], "g", [x], [z], [w]), opset_imports=opset
    )
    assert convolutions(model) == [
        Convolution((3, 3), (1, 1), (1, 1), (0, 0, 0, 0)),
        Convolution((3, 3), (2, 1), (2, 3), (2, 3, 4, 5)),
    ]


def emulated(model: ModelProto) -> ModelProto:
    """ONNX Runtime has no BF16 convolution: round to BF16 around FP32 operators instead."""
    flat = inline(model)
    low = {t.name for t in flat.graph.initializer if t.data_type == TensorProto.BFLOAT16}
    for t in flat.graph.initializer:
        if t.name in low:
            array = numpy_helper.to_array(t).astype(np.float32)
            t.CopyFrom(numpy_helper.from_array(array, t.name))
    inside = [
        own and n.op_type not in ("Cast", "ConvTranspose")
        for n, own in zip(flat.graph.node, network_nodes(flat), strict=True)
    ]
    nodes = []
    for node, own in zip(flat.graph.node, inside, strict=True):
        if node.op_type == "Cast" and node.attribute[0].i == TensorProto.BFLOAT16:
            out, middle = node.output[0], f"{node.output[0]}.rounded"
            node.output[0] = middle
            nodes += [node, helper.make_node("Cast", [middle], [out], to=TensorProto.FLOAT)]
            continue
        nodes.append(node)
        if own:
            out, raw, middle = node.output[0], f"{node.output[0]}.raw", f"{node.output[0]}.rounded"
            node.output[0] = raw
            nodes.append(helper.make_node("Cast", [raw], [middle], to=TensorProto.BFLOAT16))
            nodes.append(helper.make_node("Cast", [middle], [out], to=TensorProto.FLOAT))
    del flat.graph.node[:]
    flat.graph.node.extend(nodes)
    return flat


@pytest.mark.parametrize("form", [lambda m: m, inline], ids=["functions", "inlined"])
def test_bf16_is_the_network_alone(
    model: ModelProto, form: Callable[[ModelProto], ModelProto]
) -> None:
    low = to_bf16(form(model))
    onnx.checker.check_model(low, full_check=True)
    types = {t.name: t.data_type for t in low.graph.initializer}
    assert types["stem.conv.weight"] == types["head.conv.bias"] == TensorProto.BFLOAT16
    assert types["up.0.weight"] == types["up.1.bias"] == TensorProto.FLOAT  # RTX has no other
    casts = {n.input[0]: n.attribute[0].i for n in low.graph.node if n.op_type == "Cast"}
    assert casts["packed"] == TensorProto.BFLOAT16
    assert casts["head"] == TensorProto.FLOAT
    assert "pull.1" not in casts
    assert list(low.graph.output) == list(model.graph.output)
    assert convolutions(low) == convolutions(model)


def test_bf16_stays_near_fp32(model: ModelProto, run: Runner) -> None:
    low = Runner(emulated(to_bf16(model)))
    for x in random_inputs(8, np.random.default_rng(5)):
        (restored, state), (restored_low, state_low) = run(x), low(x)
        assert np.array_equal(state, state_low)
        assert worst(restored, restored_low) <= 4
        assert np.abs(restored.astype(int) - restored_low).mean() < 0.5


def test_bf16_of_a_foreign_operator_is_refused(model: ModelProto) -> None:
    other = inline(model)
    [n for n in other.graph.node if n.op_type == "Relu"][-1].op_type = "Softplus"
    with pytest.raises(ModelError, match="Softplus in the network has no BF16 form"):
        to_bf16(other)


def test_network_lies_between_the_first_and_the_last_weights(model: ModelProto) -> None:
    pairs = zip(model.graph.node, network_nodes(model), strict=True)
    names = [n.output[0] for n, inside in pairs if inside]
    assert names[0] == "stem"
    assert names[-1] == "head"
    assert {"down.0", "middle.3", "up.0", "skip.0"} <= set(names)


def test_layers_have_the_generators_names(model: ModelProto) -> None:
    names = [layer_of(n) for n in inline(model).graph.node]
    assert {"stem", "encoder.1.0.conv3", "encoder.1.0.conv1", "up.1", "head"} <= set(names)
    pyramid = [n for n in inline(model).graph.node if n.op_type == "Conv" and not layer_of(n)]
    assert len(pyramid) == 13


def test_needs_no_torch() -> None:
    code = "import sys, fastrestore.export.precision; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
