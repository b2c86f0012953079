from __future__ import annotations

import numpy as np
import pytest

from fastrestore.arrays import U8
from fastrestore.backend import find_model, open_backend
from fastrestore.errors import InputError, ModelError
from fastrestore.protocol import Case
from fastrestore.restore import Restorer
from fastrestore.whole import float_graph, open_float, run_whole

MODEL = "nano"
H, W = 50, 70


def picture() -> U8:
    y, x = np.mgrid[:H, :W]
    waves = [127 + 100 * np.sin(x / 9 + c) * np.cos(y / 13 - c) for c in range(3)]
    return np.stack(waves, -1).astype(np.uint8)


def test_float_frames_of_whole_numbers_give_the_bytes_of_the_shipped_graph() -> None:
    pytest.importorskip("onnx", reason="the extra evaluate is not installed")
    d = Case("noise", sigma=25).damage("a", picture())
    backend, floats = open_backend(MODEL, "ort", 1), open_float(MODEL, 1)
    expected = run_whole(backend, d.image, None, 25)
    assert np.array_equal(run_whole(floats, d.image.astype(np.float32), None, 25), expected)
    with Restorer(MODEL, backend="ort", threads=1) as restorer:
        assert np.array_equal(restorer(d.image, sigma=25.0), expected)


def test_float_frames_are_not_clipped() -> None:
    """Noise around white: what lies beyond 255 is what makes the mean right."""
    pytest.importorskip("onnx", reason="the extra evaluate is not installed")
    white = np.full((64, 64, 3), 254, np.uint8)
    d = Case("noise", sigma=25, noise="float").damage("a", white)
    assert d.unclipped is not None
    floats = open_float(MODEL, 1)
    unclipped = run_whole(floats, d.unclipped, None, 25)
    clipped = run_whole(floats, d.image.astype(np.float32), None, 25)
    assert unclipped.mean() > clipped.mean() + 1


def test_known_pixels_pass_through_without_noise() -> None:
    d = Case("rects", (("rects", 0.1),)).damage("a", picture())
    assert d.mask is not None
    out = run_whole(open_backend(MODEL, "ort", 1), d.image, d.mask, 0)
    assert out.shape == (H, W, 3)
    far = np.zeros((H, W), bool)
    far[8:-8, 8:-8] = True
    known = far & (d.mask == 0)
    assert np.abs(out[known].astype(int) - d.clean[known]).mean() < 1
    assert np.abs(out[d.mask > 0].astype(int) - d.clean[d.mask > 0]).mean() < 40


def test_too_large_a_picture_is_refused() -> None:
    with pytest.raises(InputError, match="too large for one run"):
        run_whole(open_backend(MODEL, "ort", 1), np.zeros((1500, 1500, 3), np.uint8), None, 0)


def test_a_graph_that_uses_its_frame_otherwise_is_refused() -> None:
    onnx = pytest.importorskip("onnx", reason="the extra evaluate is not installed")
    proto = onnx.load_from_string(find_model(MODEL).read_bytes())
    proto.graph.node.append(onnx.helper.make_node("Identity", ["frame"], ["again"]))
    with pytest.raises(ModelError, match="odd: its frame is not simply cast"):
        float_graph(proto.SerializeToString(), "odd")
