"""The generator's weights out of a model file, in the file's own order of channels.

Needs neither torch nor Triton: training starts from the same reading as the Triton backend.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastrestore.arrays import F32
from fastrestore.errors import ModelError, need
from fastrestore.presets import PRESETS, UNSHUFFLE, Preset

Weights = dict[str, F32]
_CELLS = UNSHUFFLE**2


@dataclass(frozen=True, slots=True)
class ModelFile:
    """What a model file holds beside its graph.

    Attributes:
        preset: Sizes of the generator.
        weights: float32 by their names in the generator. Input channels of `stem` count
            `cell * 8 + c`, output channels of `head` `cell * outputs + c`, with the cell
            `2 * y + x` inside a square of four px.
        inputs: Names of the graph's inputs.
        outputs: Names of its outputs.
    """

    preset: Preset
    weights: Weights
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def read_weights(model: bytes, preset: str, name: str, extra: str) -> ModelFile:
    """Read the weights of a file of `fastrestore export`.

    Args:
        model: The file's bytes.
        preset: Size of the generator, as the file's spec says.
        name: What messages call the file.
        extra: The extra that brings the package `onnx`, for the message without it.

    Raises:
        ModelError: The file is damaged, or its layers are not those of the preset it names.
        MissingExtraError: The package `onnx` is not installed.
    """
    onnx = need("onnx", extra)
    if preset not in PRESETS:
        known = ", ".join(PRESETS)
        raise ModelError(f"{name}: preset {preset} is not known to this version, only {known}")
    try:
        graph = onnx.load_model_from_string(model).graph
        weights = dict(_floats(onnx, graph))
    except Exception as e:  # protobuf's own error types, by version
        raise ModelError(f"{name}: its weights cannot be read ({_first_line(e)})") from e
    if not _fits(PRESETS[preset], weights):
        raise ModelError(f"{name}: its layers are not those of a {preset} generator")
    inputs, outputs = (tuple(v.name for v in side) for side in (graph.input, graph.output))
    return ModelFile(PRESETS[preset], weights, inputs, outputs)


def shapes(preset: Preset, outputs: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight and bias of the fused generator, by its name.

    Args:
        preset: Sizes of the generator.
        outputs: Channels of the head.
    """
    found: dict[str, tuple[int, ...]] = {}
    for c in preset.convs(preset.multiple, preset.multiple):
        cout = outputs if c.role == "head" else c.cout
        sides = (c.cin, cout) if c.role == "up" else (cout, c.cin)
        name = f"{c.name}.conv" if c.role in ("stem", "spatial", "head") else c.name
        found[f"{name}.weight"] = (*sides, c.kernel, c.kernel)
        found[f"{name}.bias"] = (cout,)
    return found


def _floats(onnx: Any, graph: Any) -> Iterator[tuple[str, F32]]:
    for tensor in graph.initializer:
        if tensor.name.endswith((".weight", ".bias")):
            yield tensor.name, np.asarray(onnx.numpy_helper.to_array(tensor), np.float32)


def _fits(preset: Preset, weights: Weights) -> bool:
    outputs = len(weights.get("head.conv.bias", ()))
    found = {name: w.shape for name, w in weights.items()}
    return outputs > 0 and outputs % _CELLS == 0 and found == shapes(preset, outputs)


def _first_line(e: Exception) -> str:
    return str(e).strip().splitlines()[0][:200] if str(e).strip() else type(e).__name__
