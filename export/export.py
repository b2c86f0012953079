"""The way from a trained generator to a model file: fuse, build, verify, write."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnx import ModelProto

from fastrestore._version import __version__
from fastrestore.atomic import label, write_file
from fastrestore.errors import ModelError, need
from fastrestore.export.detector import build_detector
from fastrestore.export.graph import build
from fastrestore.export.parity import Parity, verify
from fastrestore.presets import HALO_PX, PYRAMID_LEVELS
from fastrestore.spec import Kind, ModelSpec, Track, read_spec
from fastrestore.train.generator import Generator


def export_model(
    generator: Generator,
    target: Path,
    *,
    name: str,
    track: Track,
    licence: str,
    training: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    version: int = 1,
    kind: Kind = "restorer",
    state: bool = True,
    simplify: bool = False,
) -> Parity:
    """Write one verified ONNX file, or nothing.

    Args:
        generator: Trained weights, fused or not, on any device; not changed.
        target: Path of the file; replaced at the very end, at once.
        name: What `--model` will call it.
        track: `free` or `research`.
        licence: SPDX name or a sentence on who may use the weights.
        training: Summary of the training, plain JSON values.
        metrics: Figures on held-out pictures, by test name.
        version: Version of the weights.
        kind: `restorer`, or `detector` for a generator of one output.
        state: False for a restorer's stills-only graph, 20 % faster on a CPU.
        simplify: Run onnxsim over the graph; the result is verified again.

    Returns:
        How close ONNX Runtime came to torch.

    Raises:
        ModelError: The graph failed a check.
        MissingExtraError: `simplify` without onnxsim.
        OutputError: The file cannot be written.
    """
    preset = generator.preset
    # A detector has no pyramid: its crops only keep to the steps of its own levels.
    levels = PYRAMID_LEVELS if kind == "restorer" else len(preset.widths)
    spec = ModelSpec(
        name=name,
        preset=preset.name,
        multiple=preset.multiple,
        halo=HALO_PX,
        levels=levels,
        track=track,
        licence=licence,
        training=training or {},
        metrics=metrics or {},
        code=__version__,
        kind=kind,
        version=version,
    )
    try:
        fused = copy.deepcopy(generator).fuse()
        model = build_detector(fused, spec) if kind == "detector" else build(fused, spec, state)
        parity = verify(model, generator)
        if simplify:
            model = _simplified(model)
            parity = verify(model, generator)
        data = model.SerializeToString()
        read_spec(data, "model")
    except ModelError as e:
        raise ModelError(f"{label(target)}: not written: {e}") from e
    write_file(target, data)
    return parity


def _simplified(model: ModelProto) -> ModelProto:
    onnxsim = need("onnxsim", "simplify")
    simple: ModelProto
    simple, same = onnxsim.simplify(model)
    if not same:
        raise ModelError("model: onnxsim changed what it computes; export without simplify")
    return simple
