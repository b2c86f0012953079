"""From a fused generator and its spec to an ONNX graph, node by node."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import (
    FunctionProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    helper,
    numpy_helper,
)

from fastrestore._version import __version__
from fastrestore.arrays import F32
from fastrestore.errors import ModelError
from fastrestore.export.functions import DOMAIN, OPSET, PLUGIN_ATTRIBUTES, make_functions
from fastrestore.kernels.fusion import MOTION_LEVEL
from fastrestore.presets import IN_CHANNELS, PYRAMID_LEVELS, UNSHUFFLE, Preset
from fastrestore.spec import KEY, Kind, ModelSpec
from fastrestore.train.generator import Generator

IR_VERSION = 10
SPARE_CHANNELS = slice(6, IN_CHANNELS)  # of the network's input: reserved, always zero
CHANNELS = {"frame": 3, "mask": 1, "state": 4, "restored": 3, "state_out": 4, "damage": 1}
RESULT: dict[Kind, str] = {"restorer": "restored", "detector": "damage"}
_CELLS = UNSHUFFLE**2


class Graph:
    """The main graph as it grows. Every method returns the name of the value it made."""

    def __init__(self, arrays: Mapping[str, F32]) -> None:
        self.arrays = arrays
        self.nodes: list[NodeProto] = []
        self.weights: list[TensorProto] = []

    def node(self, kind: str, inputs: list[str], out: str, **attributes: Any) -> str:
        """Append a node named like its output."""
        self.nodes.append(helper.make_node(kind, inputs, [out], out, **attributes))
        return out

    def call(self, function: str, inputs: list[str], *outputs: str) -> str:
        """Call one of our functions; return its first output."""
        node = helper.make_node(function, inputs, outputs, outputs[0], domain=DOMAIN)
        node.attribute.extend(helper.make_attribute(k, v) for k, v in PLUGIN_ATTRIBUTES.items())
        self.nodes.append(node)
        return outputs[0]

    def weight(self, name: str) -> str:
        """Store one weight or bias under its name in the generator."""
        return self.initializer(name, np.ascontiguousarray(self.arrays[name], np.float32))

    def initializer(self, name: str, array: F32 | npt.NDArray[np.int64]) -> str:
        """Store a constant of the main graph."""
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def conv3(self, x: str, name: str) -> str:
        """3x3 convolution at the same size."""
        weights = [self.weight(f"{name}.conv.{part}") for part in ("weight", "bias")]
        return self.node("Conv", [x, *weights], name, kernel_shape=[3, 3], pads=[1] * 4)

    def scale(self, x: str, name: str, kind: str) -> str:
        """2x2 convolution of stride 2, plain (down) or transposed (up)."""
        weights = [self.weight(f"{name}.{part}") for part in ("weight", "bias")]
        return self.node(kind, [x, *weights], name, kernel_shape=[2, 2], strides=[2, 2])

    def blocks(self, x: str, name: str, dilations: Iterable[int]) -> str:
        """Residual blocks of one level."""
        for j, d in enumerate(dilations):
            layers = (f"{name}.{j}.conv3.conv", f"{name}.{j}.conv1")
            weights = [self.weight(f"{at}.{part}") for at in layers for part in ("weight", "bias")]
            x = self.call(f"ResidualBlockD{d}", [x, *weights], f"{name}.{j}")
        return x


def build(generator: Generator, spec: ModelSpec, state: bool = True) -> ModelProto:
    """Write the graph of frame, mask, state and sigma to restored and state_out.

    Args:
        generator: After `fuse()`, on any device.
        spec: Goes into the metadata.
        state: False leaves `state` and `state_out` away: stills only, the same weights.

    Returns:
        FP32, functions with bodies, N, H and W free, nothing verified yet.

    Raises:
        ModelError: The generator still has training branches, or is not of the spec's preset.
    """
    graph = start(generator, spec)
    inputs = _cast_inputs(graph, state)
    packed = _base(graph, inputs) if state else _still_base(graph, inputs)
    residual = network(graph, generator.preset, packed)
    restored = graph.call("UnpackFrame", [residual, packed], "restored.levels")
    outputs = {"restored": restored} | ({"state_out": "state.levels"} if state else {})
    for name, value in outputs.items():
        graph.node("Cast", [value], name, to=TensorProto.UINT8)
    return _model(graph, generator.preset, spec, list(outputs))


def start(generator: Generator, spec: ModelSpec) -> Graph:
    """Return an empty graph that knows the generator's weights.

    Raises:
        ModelError: The generator still has training branches, or is not of the spec's preset
            or kind.
    """
    preset = generator.preset
    if (spec.preset, spec.multiple) != (preset.name, preset.multiple):
        raise ModelError(f"{spec.name}: spec is not of preset {preset.name}; make the spec from it")
    arrays = {k: v.float().cpu().numpy() for k, v in generator.state_dict().items()}
    if any(name.endswith(".mix") for name in arrays):
        raise ModelError(f"{spec.name}: generator has training branches; call fuse() first")
    outputs = len(arrays["head.conv.bias"]) // _CELLS
    if outputs != CHANNELS[RESULT[spec.kind]]:
        raise ModelError(f"{spec.name}: a generator of {outputs} outputs makes no {spec.kind}")
    return Graph(_reordered(arrays))


def _reordered(arrays: Mapping[str, F32]) -> dict[str, F32]:
    """Turn the order of torch's pixel_(un)shuffle, c * 4 + s, into SpaceToDepth's, s * C + c."""
    stem = arrays["stem.conv.weight"].reshape(-1, IN_CHANNELS, _CELLS, 3, 3).swapaxes(1, 2).copy()
    stem[:, :, SPARE_CHANNELS] = 0
    new: dict[str, F32] = {"stem.conv.weight": stem.reshape(len(stem), -1, 3, 3)}
    for part in ("head.conv.weight", "head.conv.bias"):
        head = arrays[part]
        new[part] = head.reshape(-1, _CELLS, *head.shape[1:]).swapaxes(0, 1).reshape(head.shape)
    return {**arrays, **new}


def _cast_inputs(graph: Graph, state: bool) -> dict[str, str]:
    """Turn the inputs into float; TensorRT takes uint8 in a Cast of the main graph only."""
    pictures = ("frame", "mask", "state") if state else ("frame", "mask")
    values = {n: graph.node("Cast", [n], f"{n}.float", to=TensorProto.FLOAT) for n in pictures}
    axes = graph.initializer("sigma.axes", np.array([1, 2, 3], np.int64))
    return {**values, "sigma": graph.node("Unsqueeze", ["sigma", axes], "sigma.4d")}


def _base(graph: Graph, inputs: dict[str, str]) -> str:
    """Fuse frame and past; return the packed network input and leave `state.levels`."""
    everything = list(inputs.values())
    graph.call("PullFrame", everything, "pull.1", "band.1")
    graph.call("PullBand1", ["pull.1", "band.1"], "pull.2", "band.2")
    graph.call("PullBand2", ["pull.2", "band.2"], "pull.3")
    for i in range(MOTION_LEVEL + 1, PYRAMID_LEVELS + 1):
        graph.call("PullLevel", [f"pull.{i - 1}"], f"pull.{i}")
    x = graph.call("MeanFill", [f"pull.{PYRAMID_LEVELS}"], f"push.{PYRAMID_LEVELS}")
    for i in range(PYRAMID_LEVELS - 1, MOTION_LEVEL, -1):
        x = graph.call("PushLevel6", [f"pull.{i}", x], f"push.{i}")
    x = graph.call("PushSplit", [f"pull.{MOTION_LEVEL}", x], f"push.{MOTION_LEVEL}", "motion")
    for i in range(MOTION_LEVEL - 1, 0, -1):
        x = graph.call("PushLevel", [f"pull.{i}", x], f"push.{i}")
    return graph.call("PackFrame", [*everything, x, "motion"], "packed", "state.levels")


def _still_base(graph: Graph, inputs: dict[str, str]) -> str:
    """Fill the frame's holes; return the packed network input."""
    frame, mask, sigma = inputs.values()
    graph.call("PullFrame", [frame, mask], "pull.1")
    for i in range(2, PYRAMID_LEVELS + 1):
        graph.call("PullLevel", [f"pull.{i - 1}"], f"pull.{i}")
    x = graph.call("MeanFill", [f"pull.{PYRAMID_LEVELS}"], f"push.{PYRAMID_LEVELS}")
    for i in range(PYRAMID_LEVELS - 1, 0, -1):
        x = graph.call("PushLevel", [f"pull.{i}", x], f"push.{i}")
    return graph.call("PackFrame", [frame, mask, sigma, x], "packed")


def network(graph: Graph, preset: Preset, packed: str) -> str:
    """Write the generator's `forward`, without its shuffles."""
    x = graph.conv3(packed, "stem")
    skips = []
    for i, blocks in enumerate(preset.encoder):
        x = graph.blocks(x, f"encoder.{i}", (1,) * blocks)
        skips.append(x)
        x = graph.scale(x, f"down.{i}", "Conv")
    x = graph.blocks(x, "middle", (*(1,) * preset.middle, *preset.dilations))
    for i in reversed(range(len(preset.decoder))):
        x = graph.scale(x, f"up.{i}", "ConvTranspose")
        x = graph.node("Add", [x, skips[i]], f"skip.{i}")
        x = graph.blocks(x, f"decoder.{i}", (1,) * preset.decoder[i])
    return graph.conv3(x, "head")


def _model(graph: Graph, preset: Preset, spec: ModelSpec, outputs: list[str]) -> ModelProto:
    names = ["frame", "mask"] + (["state"] if "state_out" in outputs else [])
    inputs = [picture(name) for name in names]
    inputs.append(helper.make_tensor_value_info("sigma", TensorProto.FLOAT, ["N"]))
    results = [picture(name) for name in outputs]
    functions = make_functions(dilations(preset), "state" in names)
    return finish(graph, spec, inputs, results, functions)


def picture(name: str) -> ValueInfoProto:
    """Describe one input or output of the whole graph, uint8 `(N, H, W, C)`."""
    shape: list[str | int | None] = ["N", "H", "W", CHANNELS[name]]
    return helper.make_tensor_value_info(name, TensorProto.UINT8, shape)


def dilations(preset: Preset) -> list[int]:
    """Return those of the residual blocks, each once."""
    layers = preset.convs(preset.multiple, preset.multiple)
    return sorted({c.dilation for c in layers if c.role == "spatial"})


def finish(
    graph: Graph,
    spec: ModelSpec,
    inputs: list[ValueInfoProto],
    outputs: list[ValueInfoProto],
    functions: Iterable[FunctionProto],
) -> ModelProto:
    """Make the model of a graph that is complete: versions, functions, spec."""
    model: ModelProto = helper.make_model(
        helper.make_graph(graph.nodes, DOMAIN, inputs, outputs, graph.weights),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)],
        functions=list(functions),
        producer_name=DOMAIN,
        producer_version=__version__,
        ir_version=IR_VERSION,
    )
    helper.set_model_props(model, {KEY: spec.to_json()})
    return model
