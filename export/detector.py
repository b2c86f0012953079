"""The detector's graph, frame to damage: the generator's body between other ends.

Its parity with torch is checked by `export.parity.verify`, like a restorer's.
"""

from __future__ import annotations

from collections.abc import Iterator

from onnx import FunctionProto, ModelProto, TensorProto

from fastrestore.export.functions import Body, features, nchw, op, residual_block
from fastrestore.export.graph import dilations, finish, network, picture, start
from fastrestore.presets import UNSHUFFLE, Preset
from fastrestore.spec import ModelSpec
from fastrestore.train.generator import Generator


def build_detector(generator: Generator, spec: ModelSpec) -> ModelProto:
    """Write the graph of frame, uint8 RGB `(N, H, W, 3)`, to damage, uint8 `(N, H, W, 1)`.

    Args:
        generator: Of one output, a logit; after `fuse()`, on any device.
        spec: Goes into the metadata.

    Returns:
        FP32, functions with bodies, N, H and W free, nothing verified yet. `damage` is the
        probability in 255ths.

    Raises:
        ModelError: The generator is no detector, still has training branches, or is not of the
            spec's preset.
    """
    graph = start(generator, spec)
    frame = graph.node("Cast", ["frame"], "frame.float", to=TensorProto.FLOAT)
    packed = graph.call("PackPicture", [frame], "packed")
    logits = network(graph, generator.preset, packed)
    levels = graph.call("UnpackDamage", [logits], "damage.levels")
    graph.node("Cast", [levels], "damage", to=TensorProto.UINT8)
    functions = _functions(generator.preset)
    return finish(graph, spec, [picture("frame")], [picture("damage")], functions)


def _functions(preset: Preset) -> Iterator[FunctionProto]:
    yield _pack_picture()
    yield from (residual_block(d) for d in dilations(preset))
    yield _unpack_damage()


def _pack_picture() -> FunctionProto:
    """Write `fusion.pack` of a frame that has neither a soft mask nor a noise map."""
    body = Body("PackPicture", "frame")
    (x,) = body.inputs
    frame = nchw(x)
    none = op("Slice", frame, [0], [1], [1]) * 0.0
    return body.function(packed=features(frame, none, none))


def _unpack_damage() -> FunctionProto:
    body = Body("UnpackDamage", "logits")
    (logits,) = body.inputs
    levels = op("Round", op("Sigmoid", logits) * 255.0)
    y = op("DepthToSpace", levels, blocksize=UNSHUFFLE, mode="DCR")
    return body.function(levels=op("Transpose", y, perm=[0, 2, 3, 1]))
