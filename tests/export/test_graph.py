"""The exported graph's contract: ends, functions, geometry, weights. Numbers are test_parity's."""

from __future__ import annotations

import copy
from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto, numpy_helper

from fastrestore.errors import ModelError
from fastrestore.export.graph import build
from fastrestore.export.precision import Convolution, convolutions, inline
from fastrestore.presets import IN_CHANNELS, PRESETS, Preset
from fastrestore.spec import ModelSpec, read_spec
from fastrestore.train.generator import Generator

PULL = Convolution((4, 4), (2, 2), (1, 1), (1, 1, 2, 2))
LUMA = Convolution((1, 1), (1, 1), (1, 1), (0, 0, 0, 0))
SOBEL = Convolution((3, 3), (1, 1), (1, 1), (0, 0, 0, 0))
ALWAYS = {"PullFrame", "PullLevel", "MeanFill", "PushLevel", "PackFrame", "UnpackFrame"}
WITH_STATE = {"PullBand1", "PullBand2", "PushLevel6", "PushSplit"}


def make_generator(preset: str) -> Generator:
    """Random, with no weight at zero."""
    torch.manual_seed(0)
    generator = Generator(PRESETS[preset])
    with torch.no_grad():
        for p in generator.parameters():
            if not p.any():
                p.normal_(std=0.02 if p.ndim == 1 else 0.3 * p[0].numel() ** -0.5)
    return generator.fuse()


def make_spec(preset: Preset) -> ModelSpec:
    return ModelSpec(preset.name, preset.name, preset.multiple, 64, 6, "free", "CC0-1.0")


@pytest.fixture(scope="module")
def generator() -> Generator:
    return make_generator("nano")


@pytest.fixture(scope="module")
def model(generator: Generator) -> ModelProto:
    return build(generator, make_spec(generator.preset))


@pytest.fixture(scope="module")
def still(generator: Generator) -> ModelProto:
    return build(generator, make_spec(generator.preset), state=False)


def ends(values: list[onnx.ValueInfoProto]) -> dict[str, tuple[int, list[str | int]]]:
    def dims(value: onnx.ValueInfoProto) -> list[str | int]:
        return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]

    return {v.name: (v.type.tensor_type.elem_type, dims(v)) for v in values}


def weights(model: ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def test_inputs_and_outputs_are_the_contract(model: ModelProto) -> None:
    u8 = TensorProto.UINT8
    assert ends(model.graph.input) == {
        "frame": (u8, ["N", "H", "W", 3]),
        "mask": (u8, ["N", "H", "W", 1]),
        "state": (u8, ["N", "H", "W", 4]),
        "sigma": (TensorProto.FLOAT, ["N"]),
    }
    assert ends(model.graph.output) == {
        "restored": (u8, ["N", "H", "W", 3]),
        "state_out": (u8, ["N", "H", "W", 4]),
    }


def test_stills_graph_has_no_state_and_the_same_weights(
    model: ModelProto, still: ModelProto
) -> None:
    assert list(ends(still.graph.input)) == ["frame", "mask", "sigma"]
    assert list(ends(still.graph.output)) == ["restored"]
    assert list(still.graph.initializer) == list(model.graph.initializer)


def test_versions_and_spec(model: ModelProto) -> None:
    assert {o.domain: o.version for o in model.opset_import} == {"": 19, "fastrestore": 1}
    assert model.ir_version == 10
    assert read_spec(model.SerializeToString(), "m") == make_spec(PRESETS["nano"])


def test_launches_come_in_the_stated_order(model: ModelProto) -> None:
    calls = [n.op_type for n in model.graph.node if n.domain == "fastrestore"]
    assert calls == [
        *("PullFrame", "PullBand1", "PullBand2", "PullLevel", "PullLevel", "PullLevel"),
        *("MeanFill", "PushLevel6", "PushLevel6", "PushSplit", "PushLevel", "PushLevel"),
        "PackFrame",
        "ResidualBlockD1",  # encoder
        *("ResidualBlockD1", "ResidualBlockD1", "ResidualBlockD2", "ResidualBlockD4"),
        "ResidualBlockD1",  # decoder
        "UnpackFrame",
    ]


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("state", [True, False])
def test_every_preset_has_its_functions_convolutions_and_parameters(name: str, state: bool) -> None:
    preset = PRESETS[name]
    model = build(Generator(preset).fuse(), make_spec(preset), state)
    onnx.checker.check_model(model, full_check=True)
    blocks = {f"ResidualBlockD{d}" for d in (1, *preset.dilations)}
    expected = ALWAYS | blocks | (WITH_STATE if state else set())
    assert {f.name for f in model.functions} == expected
    assert {n.op_type for n in model.graph.node if n.domain} == expected

    network = [
        Convolution((c.kernel,) * 2, (c.stride,) * 2, (c.dilation,) * 2, (pad,) * 4)
        for c in preset.convs(preset.multiple, preset.multiple)
        for pad in [c.dilation if c.kernel == 3 else 0]
        if c.role != "up"
    ]
    base = [LUMA, SOBEL, *[PULL] * (11 if state else 6)]
    assert Counter(convolutions(model)) == Counter(network + base)
    floats = [w for w in weights(model).values() if w.dtype == np.float32]
    assert sum(w.size for w in floats) == preset.parameters


def test_stem_and_head_are_in_space_to_depth_order(generator: Generator, model: ModelProto) -> None:
    ours, theirs = weights(model), generator.state_dict()
    stem, torch_stem = ours["stem.conv.weight"], theirs["stem.conv.weight"].numpy()
    head, torch_head = ours["head.conv.weight"], theirs["head.conv.weight"].numpy()
    bias, torch_bias = ours["head.conv.bias"], theirs["head.conv.bias"].numpy()
    for s in range(4):
        for c in range(IN_CHANNELS):
            expected = torch_stem[:, c * 4 + s] if c < 6 else 0
            assert np.all(stem[:, s * IN_CHANNELS + c] == expected)
        for c in range(3):
            assert np.all(head[s * 3 + c] == torch_head[c * 4 + s])
            assert bias[s * 3 + c] == torch_bias[c * 4 + s]


def test_same_generator_gives_the_same_bytes(generator: Generator, model: ModelProto) -> None:
    again = build(copy.deepcopy(generator), make_spec(generator.preset))
    assert again.SerializeToString() == model.SerializeToString()


def test_bodies_hold_nothing_unused(model: ModelProto) -> None:
    flat = inline(model)
    read = {v for n in flat.graph.node for v in n.input} | {o.name for o in flat.graph.output}
    assert [v for n in flat.graph.node for v in n.output if v not in read] == []


def test_training_branches_are_refused() -> None:
    preset = PRESETS["nano"]
    with pytest.raises(ModelError, match=r"call fuse\(\)"):
        build(Generator(preset), make_spec(preset))


def test_spec_of_another_preset_is_refused(generator: Generator) -> None:
    with pytest.raises(ModelError, match="not of preset nano"):
        build(generator, make_spec(PRESETS["tiny"]))
