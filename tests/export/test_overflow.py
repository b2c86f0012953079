"""Peaks of inner values, and the refusal of what FP16 cannot hold."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper

from fastrestore.errors import ModelError
from fastrestore.export import overflow
from fastrestore.export.graph import build
from fastrestore.export.overflow import (
    check_fp16,
    exact_session,
    has_no_numbers,
    peaks,
    saturated_inputs,
)
from fastrestore.export.precision import inline
from fastrestore.presets import PRESETS
from fastrestore.spec import ModelSpec
from fastrestore.train.generator import Generator

SIDE = 64


@pytest.fixture(scope="module")
def model() -> ModelProto:
    torch.manual_seed(0)
    generator = Generator(PRESETS["nano"])
    with torch.no_grad():
        for p in generator.parameters():
            if not p.any():
                p.normal_(std=0.02 if p.ndim == 1 else 0.3 * p[0].numel() ** -0.5)
    return build(generator.fuse(), ModelSpec("nano", "nano", 8, 64, 6, "free", "CC0-1.0"))


def scaled(model: ModelProto, factors: dict[str, float]) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        factor = next((f for name, f in factors.items() if tensor.name.startswith(name)), None)
        if factor is not None:
            array = numpy_helper.to_array(tensor) * np.float32(factor)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return copy


def planted(model: ModelProto, up: float = 1e5) -> ModelProto:
    """A block whose middle is larger by `up`; its output is the same."""
    return scaled(model, {"middle.1.conv3.": up, "middle.1.conv1.weight": 1 / up})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_a_weight_that_is_no_number_is_seen(model: ModelProto, value: float, kind: Any) -> None:
    copy = ModelProto()
    copy.CopyFrom(model)
    assert not has_no_numbers(copy)
    tensor = copy.graph.initializer.add()
    tensor.CopyFrom(numpy_helper.from_array(np.array([1, value], kind), "odd"))
    assert has_no_numbers(copy)


def few() -> Iterator[dict[str, Any]]:
    return islice(saturated_inputs(SIDE), 3)


def test_a_sound_graph_passes(model: ModelProto) -> None:
    found = check_fp16(model, saturated_inputs(SIDE // 2))
    assert found == sorted(found, key=lambda p: -p.largest)
    assert 255 <= found[0].largest <= overflow.FP16_MOST


def test_an_inner_peak_is_refused_though_the_output_is_the_same(model: ModelProto) -> None:
    bad = planted(model)
    feeds = next(few())
    a, b = (exact_session(inline(m)).run(None, feeds)[0] for m in (model, bad))
    assert np.abs(a.astype(int) - b).max() <= 1  # nothing is seen from outside
    with pytest.raises(ModelError, match=r"middle\.1\.conv3 reaches .*65504.*--precision bf16"):
        check_fp16(bad, few())


def test_an_inlined_graph_names_the_layer_too(model: ModelProto) -> None:
    with pytest.raises(ModelError, match=r"middle\.1\.conv3 reaches"):
        check_fp16(inline(planted(model)), few())


def test_a_close_peak_is_warned_of(model: ModelProto, caplog: pytest.LogCaptureFixture) -> None:
    largest = next(p.largest for p in peaks(model, few()) if p.layer == "middle.1.conv3")
    with caplog.at_level(logging.WARNING):
        check_fp16(planted(model, 0.2 * overflow.FP16_MOST / largest), few())
        assert not caplog.records
        check_fp16(planted(model, 0.5 * overflow.FP16_MOST / largest), few())
    assert "middle.1.conv3 reaches" in caplog.text


def test_what_is_not_finite_counts_as_infinite(model: ModelProto) -> None:
    found = peaks(planted(model, 1e38), few())
    assert found[0].largest == np.inf
    with pytest.raises(ModelError, match="reaches inf"):
        check_fp16(planted(model, 1e38), few())


def test_peaks_are_those_of_numpy_and_of_all_batches() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    two = numpy_helper.from_array(np.float32([2]), "two")
    nodes = [
        helper.make_node("Mul", ["x", "two"], ["m"]),
        helper.make_node("Abs", ["m"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "g", [x], [y], [two])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    batches = [{"x": np.float32(v)} for v in ([1, -5], [3, 0])]
    assert {p.value: p.largest for p in peaks(model, batches)} == {"m": 10, "y": 10}


def test_parts_change_nothing(model: ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = peaks(model, few())
    monkeypatch.setattr(overflow, "PART", 7)
    assert peaks(model, few()) == whole


def test_every_float_value_of_the_graph_is_looked_at(model: ModelProto) -> None:
    flat = inline(model)
    kinds = {"Shape", "Unsqueeze"}  # int64, and sigma with other axes
    floats = {
        o
        for n in flat.graph.node
        if n.op_type not in kinds and n.output[0] not in ("restored", "state_out")
        for o in n.output
        if n.op_type != "Constant" or n.attribute[0].t.data_type == TensorProto.FLOAT
    }
    assert floats <= {p.value for p in peaks(model, few())}


def test_network_is_what_lies_between_weights(model: ModelProto) -> None:
    inside = {p.layer.partition(" ")[0] for p in peaks(model, few()) if p.in_network}
    assert {"stem", "down.0", "encoder.1.0.conv3", "up.0", "skip.0", "head"} <= inside
    assert not inside & {"packed", "restored.levels", "pull.1", "state.levels"}


def test_saturated_inputs_hold_the_extremes() -> None:
    batches = list(saturated_inputs(SIDE))
    checks: list[Callable[[dict[str, Any]], bool]] = [
        lambda b: not b["frame"].any(),
        lambda b: bool((b["frame"] == 255).all()),
        lambda b: bool((np.abs(np.diff(b["frame"].astype(int), axis=2)) == 255).all()),
        lambda b: bool(b["mask"].all()),
        lambda b: not b["mask"].any(),
        lambda b: float(b["sigma"][0]) == overflow.SIGMA_MOST,
        lambda b: bool((b["state"][..., 3] == 255).all()),
    ]
    assert all(any(check(b) for b in batches) for check in checks)
    assert {b["frame"].shape for b in batches} == {(1, SIDE, SIDE, 3)}


def test_no_inputs_are_refused(model: ModelProto) -> None:
    with pytest.raises(ModelError, match="no inputs"):
        check_fp16(model, [])
