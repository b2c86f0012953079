"""A whole picture through a model: no crops, no tiles, no composite, and float frames too.

What is measured this way is the network itself. Users get `restore.Restorer`, which runs the same
model on what must change and keeps the rest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fastrestore.arrays import F32, U8
from fastrestore.backend import Backend, read_model
from fastrestore.backends.ort import OrtBackend
from fastrestore.errors import InputError, ModelError, need
from fastrestore.tiles import BORDER_PX, LIMIT_PX


def run_whole(backend: Backend, frame: U8 | F32, mask: U8 | None, sigma: float) -> U8:
    """Run a picture in one piece.

    Args:
        backend: Loaded model; for a float frame one of `open_float`.
        frame: uint8 or float32 RGB on the 0-255 scale, `(H, W, 3)`.
        mask: uint8, `(H, W)`, 1 = hole; None = no hole.
        sigma: Noise to remove, 0-255 scale.

    Returns:
        uint8 RGB, `(H, W, 3)`: what the model gives, known pixels too.

    Raises:
        InputError: The picture has more than `LIMIT_PX` pixels.
    """
    h, w = frame.shape[:2]
    if h * w > LIMIT_PX:
        raise InputError(f"picture {w}x{h}: too large for one run; leave it out or reduce it")
    m = backend.spec.multiple
    pad = ((BORDER_PX, -(h + BORDER_PX) % m), (BORDER_PX, -(w + BORDER_PX) % m), (0, 0))
    hole = np.zeros((h, w), np.uint8) if mask is None else mask
    # The protocol of a backend says uint8; the graph of `open_float` takes what it is given.
    padded: Any = np.ascontiguousarray(np.pad(frame, pad, mode="edge")[None])
    holes = np.ascontiguousarray(np.pad(hole[..., None], pad, mode="edge")[None])
    state = np.zeros((*holes.shape[:3], 4), np.uint8)
    restored, _ = backend.run(padded, holes, state, np.full(1, sigma, np.float32))
    return restored[0, BORDER_PX : BORDER_PX + h, BORDER_PX : BORDER_PX + w]


def open_float(model: str | Path, threads: int | None = None) -> OrtBackend:
    """Load a model so that its `frame` is float32 on the 0-255 scale; all else stays.

    Published tables of denoisers add noise that is neither rounded nor clipped, which uint8
    cannot hold. On whole numbers from 0 to 255 the result is that of the shipped graph.

    Args:
        model: A shipped model's name, or the path of an ONNX file with a spec.
        threads: CPU threads; None = as many as the process may use.

    Raises:
        ModelError: As for `read_model`; or the graph does more with a frame than to cast it.
        MissingExtraError: The package `onnx` is not installed.
    """
    data, spec = read_model(model, "restorer")
    return OrtBackend(float_graph(data, spec.name), spec, threads)


def float_graph(data: bytes, name: str) -> bytes:
    """Return an ONNX file whose input `frame` is float32 instead of uint8.

    The first thing the graph does to a frame is to cast it to float, which then does nothing.

    Args:
        data: Bytes of the file.
        name: What messages call it.

    Raises:
        ModelError: The frame has other uses.
        MissingExtraError: The package `onnx` is not installed.
    """
    onnx = need("onnx", "evaluate")
    proto = onnx.load_from_string(data)
    users = [n.op_type for n in proto.graph.node if "frame" in n.input]
    frames = [i for i in proto.graph.input if i.name == "frame"]
    if users != ["Cast"] or len(frames) != 1:
        raise ModelError(f"{name}: its frame is not simply cast to float; export it again")
    frames[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    out: bytes = proto.SerializeToString()
    return out
