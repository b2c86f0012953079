"""The INT8 form: where Q/DQ stand, what they cost, and how that is decided."""

from __future__ import annotations

import dataclasses
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from fastrestore.arrays import U8
from fastrestore.errors import InputError, ModelError
from fastrestore.export import quantize as q
from fastrestore.export.graph import build
from fastrestore.export.overflow import exact_session
from fastrestore.export.precision import convolutions, inline, layer_of, to_fp16
from fastrestore.export.quality import ort_runner
from fastrestore.export.u8 import to_u8
from fastrestore.presets import PRESETS
from fastrestore.spec import ModelSpec, read_spec
from fastrestore.train.generator import Generator

SPEC = ModelSpec("nano", "nano", 8, 64, 6, "free", "CC0-1.0", training={"steps": 3})
PICTURES = [
    np.kron(np.random.default_rng(i).integers(0, 256, (12, 12, 3), np.uint8), np.ones((8, 8, 1)))
    .clip(0, 255)
    .astype(np.uint8)
    for i in range(3)
]
TEST = {"a": PICTURES[2][:64, :64]}


def make_model(preset: str) -> ModelProto:
    torch.manual_seed(0)
    p = PRESETS[preset]
    generator = Generator(p)
    with torch.no_grad():
        for w in generator.parameters():
            if not w.any():
                w.normal_(std=0.02 if w.ndim == 1 else 0.3 * w[0].numel() ** -0.5)
    spec = dataclasses.replace(SPEC, name=preset, preset=preset, multiple=p.multiple)
    return build(generator.fuse(), spec)


@pytest.fixture(scope="module")
def model() -> ModelProto:
    return make_model("nano")


@pytest.fixture(scope="module")
def calibration(model: ModelProto) -> list[dict[str, Any]]:
    return list(q.calibration_inputs(PICTURES[:2], 3, 0, model=model))


@pytest.fixture(scope="module")
def int8(model: ModelProto, calibration: list[dict[str, Any]]) -> ModelProto:
    return q.quantize(model, calibration)


def arrays(model: ModelProto) -> dict[str, Any]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def makers(model: ModelProto) -> dict[str, NodeProto]:
    return {o: n for n in model.graph.node for o in n.output}


def int8_layers(model: ModelProto) -> set[str]:
    made = makers(model)
    found = set()
    for node in model.graph.node:
        maker = made.get(node.input[0]) if node.op_type == "Conv" else None
        if maker and maker.op_type == "DequantizeLinear":
            assert made[node.input[1]].op_type == "DequantizeLinear"
            found.add(layer_of(node))
    return found


def test_form_is_what_tensorrt_takes(int8: ModelProto) -> None:
    onnx.checker.check_model(int8, full_check=True)
    assert not int8.functions
    values, made = arrays(int8), makers(int8)
    for node in int8.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = values[node.input[2]]
            assert zero.dtype == np.int8
            assert not zero.any()
        if node.op_type == "Conv" and len(node.input) > 2:  # bias stays float
            assert values[node.input[2]].dtype == np.float32
        if node.op_type == "QuantizeLinear":  # no output of a convolution, bar of `down`
            maker = made[node.input[0]]
            assert maker.op_type != "Conv" or layer_of(maker).startswith("down.")
    assert {t.data_type for t in int8.graph.initializer} == {
        TensorProto.FLOAT, TensorProto.INT8, TensorProto.INT64
    }  # fmt: skip


@pytest.mark.parametrize("preset", ["nano", "tiny"])
def test_ends_and_finest_level_stay_float(preset: str) -> None:
    model = make_model(preset)
    names = q.layers(model)
    expected = {
        layer_of(n)
        for n in inline(model).graph.node
        if n.op_type == "Conv" and layer_of(n) is not None
    }
    left = {"stem", "head", "down.0"} | {n for n in expected if ".0." in n and n[8:10] == "0."}
    assert set(names) == expected - left
    assert "encoder.1.0.conv3" in names
    assert not any(n.startswith(("decoder.0.", "up.")) for n in names)


def test_int8_layers_are_those_that_were_asked_for(
    model: ModelProto, calibration: list[dict[str, Any]], int8: ModelProto
) -> None:
    assert int8_layers(int8) == set(q.layers(model))
    kept = ["middle.0.conv3", "decoder.1.0.conv1"]
    part = q.quantize(model, calibration, keep=kept)
    assert int8_layers(part) == set(q.layers(model)) - set(kept)


def test_block_adds_its_quantised_identity(int8: ModelProto) -> None:
    made = makers(int8)
    adds = [n for n in int8.graph.node if n.output[0].startswith("middle.") and n.op_type == "Add"]
    assert len(adds) == 4
    for add in adds:
        assert [made[i].op_type for i in add.input] == ["Conv", "DequantizeLinear"]


def test_geometry_is_kept(model: ModelProto, int8: ModelProto) -> None:
    assert convolutions(int8) == convolutions(model)


def test_integers_are_the_weights(model: ModelProto, int8: ModelProto) -> None:
    name = "middle.1.conv3.conv.weight"
    before, after = arrays(model)[name], arrays(int8)
    scale = after[f"{name}.scale"].reshape(-1, 1, 1, 1)
    assert after[f"{name}.int8"].dtype == np.int8
    assert np.abs(after[f"{name}.int8"]).reshape(len(scale), -1).max(1).min() >= 126
    assert np.abs(after[f"{name}.int8"] * scale - before).max() <= scale.max() / 2 * 1.001
    assert name not in after


def test_scales_are_numbers_that_fp16_has(int8: ModelProto) -> None:
    scales = [a for n, a in arrays(int8).items() if n.endswith(".scale")]
    assert len(scales) > 20
    assert all(np.array_equal(s, s.astype(np.float16).astype(np.float32)) for s in scales)
    reach = np.float32([0.0, 1e-9, 0.3, 12.7, 1e4])
    made = q._scale(reach)
    assert (made * q.MOST >= reach).all()
    assert (made[2:] <= reach[2:] / q.MOST * 1.001).all()
    with pytest.raises(ModelError, match="beyond what FP16 scales"):
        q._scale(np.float32(1e7))


def test_fp16_form_has_the_same_grid_and_the_same_error(
    model: ModelProto, int8: ModelProto, calibration: list[dict[str, Any]]
) -> None:
    half = to_fp16(int8)
    onnx.checker.check_model(half, full_check=True)
    before, after = arrays(int8), arrays(half)
    kinds = {t.data_type for t in half.graph.initializer}
    assert kinds == {TensorProto.FLOAT16, TensorProto.INT8, TensorProto.INT64}
    for name, array in before.items():
        if name.endswith((".scale", ".int8")):
            assert np.array_equal(array, after[name])
    runs = [ort_runner(m) for m in (model, int8, half)]
    for feeds in calibration:
        full, low, low16 = (run(**feeds)[0].astype(int) for run in runs)
        assert np.abs(full - low16).mean() < 1.1 * np.abs(full - low).mean()


def test_int8_is_near_fp32(
    model: ModelProto, int8: ModelProto, calibration: list[dict[str, Any]]
) -> None:
    full, low = ort_runner(model), ort_runner(int8)
    for feeds in calibration:
        (a, state), (b, state8) = full(**feeds), low(**feeds)
        assert 0 < np.abs(a.astype(int) - b).mean() < 2
        assert np.array_equal(state, state8)  # the pyramid stays float


def test_agrees_with_onnx_runtimes_own_tool(
    model: ModelProto, calibration: list[dict[str, Any]], int8: ModelProto, tmp_path: Path
) -> None:
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # no types
        def __init__(self) -> None:
            self.left: Iterator[dict[str, Any]] = iter(calibration)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.left, None)

    root = logging.getLogger()
    handlers = list(root.handlers)
    flat = inline(model)
    names = [n.name for n in flat.graph.node if layer_of(n) in q.layers(model)]
    quantize_static(
        flat,
        tmp_path / "theirs.onnx",
        Reader(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        op_types_to_quantize=["Conv"],
        nodes_to_quantize=names,
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": ["Conv"],
        },
    )
    root.handlers[:] = handlers  # it gives the root logger one
    theirs = onnx.load(tmp_path / "theirs.onnx")
    ours, others = (
        {n.input[0]: arrays(m)[n.input[1]] for n in m.graph.node if n.op_type == "QuantizeLinear"}
        for m in (int8, theirs)
    )
    assert set(ours) == set(others)
    assert all(others[k] <= ours[k] * 1.000001 <= others[k] * 1.001 for k in ours)
    kinds = [sorted(n.op_type for n in m.graph.node) for m in (int8, theirs)]
    assert kinds[0] == kinds[1]


def test_spec_survives_and_the_record_is_beside_it(
    model: ModelProto, calibration: list[dict[str, Any]], int8: ModelProto
) -> None:
    assert read_spec(int8.SerializeToString(), "x") == SPEC
    record = q.read_record(int8)
    assert record == q.Record("max", 3, (), tuple(q.layers(model)))
    part = q.quantize(model, calibration, method="percentile", keep=["down.1"])
    record = q.read_record(part)
    assert record is not None
    assert (record.method, record.keep) == ("percentile", ("down.1",))
    assert q.read_record(model) is None
    broken = ModelProto()
    broken.CopyFrom(int8)
    next(p for p in broken.metadata_props if p.key == q.KEY).value = json.dumps({"keep": 3})
    with pytest.raises(ModelError, match="record cannot be read"):
        q.read_record(broken)


def test_percentile_is_never_wider_than_max(
    model: ModelProto, calibration: list[dict[str, Any]]
) -> None:
    most, percentile = (q.ranges(model, calibration, m) for m in ("max", "percentile"))
    assert set(most) == set(percentile)
    assert all(percentile[k] <= most[k] for k in most)
    assert any(percentile[k] < most[k] for k in most)


def test_ranges_are_the_largest_inputs(
    model: ModelProto, calibration: list[dict[str, Any]]
) -> None:
    found = q.ranges(model, calibration)
    session = exact_session(inline(model), ["down.1"])
    seen = max(np.abs(session.run(["down.1"], feeds)[0]).max() for feeds in calibration)
    assert found["down.1"] == seen


def test_calibration_covers_holes_noise_and_pasts(model: ModelProto) -> None:
    batches = list(q.calibration_inputs(PICTURES, 12, 0, model=model))
    again = list(q.calibration_inputs(PICTURES, 12, 0, model=model))
    assert all(np.array_equal(a[k], b[k]) for a, b in zip(batches, again, strict=True) for k in a)
    shares = np.array([b["mask"].mean() for b in batches])
    sigmas = np.array([b["sigma"][0] for b in batches])
    assert shares.min() == 0
    assert 0.45 < shares.max() <= 0.63  # the last cell of a grid
    assert (sigmas == 0).sum() >= 6
    assert sigmas.max() > 25
    past = [b for b in batches if b["state"].any()]
    assert len(past) == 4
    assert all(b["state"][..., 3].max() > 0 for b in past)
    assert {b["frame"].shape for b in batches} == {(1, 64, 64, 3)}


def test_one_layer_alone_and_the_greedy_choice(
    model: ModelProto, calibration: list[dict[str, Any]]
) -> None:
    judge = q.Judge(model, q.ranges(model, calibration), TEST)
    worst = q.sensitivity(judge)
    assert set(worst) == set(q.layers(model))
    order = [loss.of_gate for loss in worst.values()]
    assert order == sorted(order, reverse=True)
    assert judge.loss([]) == q.Loss(0, 0)


class Scripted:
    """A judge for whom every layer has its price."""

    def __init__(self, prices: dict[str, float]) -> None:
        self.prices = prices

    def loss(self, chosen: list[str]) -> q.Loss:
        return q.Loss(sum(self.prices[n] for n in chosen), 0.0)


def test_the_worst_stay_float_until_half_the_gate_is_left() -> None:
    prices = {"a": 0.03, "b": 0.02, "c": 0.005, "d": 0.004}
    worst = {k: q.Loss(v, 0) for k, v in prices.items()}
    judge: Any = Scripted(prices)
    choice = q.choose_keep(judge, worst)
    assert choice.keep == ("a", "b")
    assert choice.loss.of_gate <= 0.5
    assert [name for name, _ in choice.steps] == ["", "a", "b"]
    assert q.choose_keep(judge, worst, share=0.6).keep == ("a",)
    hopeless: Any = Scripted(dict.fromkeys(prices, 1.0))
    with pytest.raises(ModelError, match="every layer costs more"):
        q.choose_keep(hopeless, worst)


def test_gate_is_the_worse_of_both() -> None:
    assert q.Loss(0.05, 0.0).of_gate == pytest.approx(1)
    assert q.Loss(0.0, 0.2).of_gate == pytest.approx(2)


def test_wrong_calls_are_refused(model: ModelProto, calibration: list[dict[str, Any]]) -> None:
    method: Any = "entropy"
    with pytest.raises(InputError, match="entropy: not known"):
        q.quantize(model, calibration, method=method)
    with pytest.raises(InputError, match=r"no layer middle\.9; layers: encoder"):
        q.quantize(model, calibration, keep=["middle.9"])
    with pytest.raises(ModelError, match="no layer is left"):
        q.quantize(model, calibration, keep=q.layers(model))
    with pytest.raises(InputError, match="no pictures"):
        q.quantize(model, [])
    with pytest.raises(InputError, match="no pictures"):
        list(q.calibration_inputs([], 3, 0, model=model))
    small: U8 = np.zeros((40, 90, 3), np.uint8)
    with pytest.raises(InputError, match="90x40 px; at least 64"):
        list(q.calibration_inputs([small], 1, 0, model=model))
    with pytest.raises(InputError, match="no test pictures"):
        q.Judge(model, {}, {})


def test_the_model_itself_is_not_changed(
    model: ModelProto, calibration: list[dict[str, Any]]
) -> None:
    before = model.SerializeToString()
    q.quantize(model, calibration)
    assert model.SerializeToString() == before


def test_needs_no_torch() -> None:
    modules = "fastrestore.export.quantize, fastrestore.export.u8"  # the first brings the rest
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_is_quantised_is_not_quantised_again(
    int8: ModelProto, calibration: list[dict[str, Any]]
) -> None:
    with pytest.raises(ModelError, match="is quantised already; give the FP32 file"):
        q.quantize(int8, calibration)


def test_only_symmetric_bytes_with_a_record_are_for_engines(
    model: ModelProto, int8: ModelProto
) -> None:
    assert (q.is_quantized(model), q.is_quantized(int8)) == (False, True)
    assert q.is_for_engines(int8)
    assert not q.is_for_engines(to_u8(int8))
    bare = ModelProto()
    bare.CopyFrom(int8)
    del bare.metadata_props[:]
    assert not q.is_for_engines(bare)
