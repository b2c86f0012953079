"""Weights from a model file back into the generator's layout, to train on from what ships."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastrestore.backend import find_model
from fastrestore.kernels.weights import Weights, read_weights
from fastrestore.presets import IN_CHANNELS, UNSHUFFLE
from fastrestore.spec import read_spec

_CELLS = UNSHUFFLE**2


def read_model(name: str) -> tuple[dict[str, Tensor], list[dict[str, Any]], tuple[str, str, str]]:
    """Read a model of `fastrestore export`.

    Args:
        name: A shipped model's name, or the path of an ONNX file.

    Returns:
        Fused weights by their names in the generator; the runs they come from, as the spec tells
        them; preset, track and task.

    Raises:
        ModelError: No such model, or a foreign or damaged one.
        MissingExtraError: onnx is not installed.
    """
    path = find_model(name)
    data = path.read_bytes()
    spec = read_spec(data, str(path))
    arrays = read_weights(data, spec.preset, str(path), "export").weights
    tensors = {k: torch.from_numpy(v.copy()) for k, v in _torch_order(arrays).items()}
    earlier = [{"model": spec.name, "version": spec.version, **dict(spec.training)}]
    return tensors, earlier, (spec.preset, spec.track, spec.kind)


def _torch_order(arrays: Weights) -> Weights:
    """Turn SpaceToDepth's channel order, s * C + c, into that of torch's shuffles, c * 4 + s."""
    stem = arrays["stem.conv.weight"].reshape(-1, _CELLS, IN_CHANNELS, 3, 3).swapaxes(1, 2)
    new: Weights = {"stem.conv.weight": stem.reshape(len(stem), -1, 3, 3)}
    for part in ("head.conv.weight", "head.conv.bias"):
        head = arrays[part]
        new[part] = head.reshape(_CELLS, -1, *head.shape[1:]).swapaxes(0, 1).reshape(head.shape)
    return {**arrays, **{k: np.ascontiguousarray(v) for k, v in new.items()}}
