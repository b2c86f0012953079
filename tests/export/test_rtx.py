"""TensorRT-RTX parses and builds every preset; it shares its parser with TensorRT, needs no GPU."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from onnx import ModelProto

from fastrestore.export.graph import build
from fastrestore.export.precision import Convolution, convolutions, inline, to_fp16
from fastrestore.export.toolkit import Lines, open_toolkit
from fastrestore.presets import PRESETS
from fastrestore.spec import ModelSpec
from fastrestore.train.generator import Generator

trt = pytest.importorskip(
    "tensorrt_rtx",
    reason="tensorrt_rtx is not installed: pip install tensorrt-rtx-cu12 (x86_64 Linux, Windows)",
)
SIDE = 256


@functools.lru_cache
def make_model(preset: str, state: bool = True) -> ModelProto:
    p = PRESETS[preset]
    spec = ModelSpec(preset, preset, p.multiple, 64, 6, "free", "CC0-1.0")
    return build(Generator(p).fuse(), spec, state)


def parsed_convolutions(network: Any) -> list[Convolution]:
    found = []
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        if layer.type == trt.LayerType.CONVOLUTION:
            layer.__class__ = trt.IConvolutionLayer  # the typed view
            pads = (*layer.pre_padding, *layer.post_padding)
            sizes = (layer.kernel_size_nd, layer.stride_nd, layer.dilation_nd)
            found.append(Convolution(*(tuple(s) for s in sizes), pads))
    return sorted(found)


def check(model: ModelProto) -> None:
    lines = Lines()
    log = open_toolkit("tensorrt_rtx").logger(lines)  # it would warn of a second logger
    builder = trt.Builder(log)
    network = builder.create_network(0)  # strongly typed, always
    parser = trt.OnnxParser(network, log)
    parsed = parser.parse(model.SerializeToString())
    assert parsed, [str(parser.get_error(i)) for i in range(parser.num_errors)]
    assert parsed_convolutions(network) == convolutions(model)
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        x = network.get_input(i)
        shape = (1,) if len(x.shape) == 1 else (1, SIDE, SIDE, x.shape[-1])
        profile.set_shape(x.name, shape, shape, shape)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None, lines.errors
    assert (lines.errors, lines.warnings) == ([], [])


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_builds_with_the_same_convolutions(preset: str, precision: str) -> None:
    model = make_model(preset)
    check(to_fp16(model) if precision == "fp16" else model)


def test_builds_inlined() -> None:
    check(to_fp16(inline(make_model("nano"))))


def test_builds_stills_graph() -> None:
    check(to_fp16(make_model("nano", state=False)))


def test_comparison_sees_a_lost_dilation() -> None:
    model = make_model("nano")
    other = ModelProto()
    other.CopyFrom(model)
    block = next(f for f in other.functions if f.name == "ResidualBlockD2")
    for node in block.node:
        for a in node.attribute:
            if a.name in ("dilations", "pads"):
                a.ints[:] = [1] * len(a.ints)
    assert convolutions(other) != convolutions(model)
