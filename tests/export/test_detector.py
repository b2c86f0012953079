"""The detector's graph: its contract, its parity with torch, and the way from a run to a file."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, TensorProto

from fastrestore.errors import ModelError
from fastrestore.export.card import write_card
from fastrestore.export.detector import build_detector
from fastrestore.export.export import export_model
from fastrestore.export.graph import build
from fastrestore.export.parity import detect_torch, random_inputs, verify
from fastrestore.export.precision import Convolution, convolutions, inline, to_fp16
from fastrestore.kernels.fusion import LUMA, sobel
from fastrestore.presets import PRESETS
from fastrestore.spec import ModelSpec, read_spec
from fastrestore.train.generator import Generator


def make_generator(preset: str, outputs: int = 1) -> Generator:
    """Random, with no weight at zero; probabilities of all sizes."""
    torch.manual_seed(0)
    generator = Generator(PRESETS[preset], outputs)
    with torch.no_grad():
        for p in generator.parameters():
            if not p.any():
                p.normal_(std=0.02 if p.ndim == 1 else 0.3 * p[0].numel() ** -0.5)
        generator.head.conv.weight.mul_(4)
    return generator


def make_model(generator: Generator) -> ModelProto:
    p = generator.preset
    spec = ModelSpec(p.name, p.name, p.multiple, 64, 3, "free", "CC0-1.0", kind="detector")
    return build_detector(copy.deepcopy(generator).fuse(), spec)


@pytest.fixture(scope="module")
def generator() -> Generator:
    return make_generator("nano")


@pytest.fixture(scope="module")
def model(generator: Generator) -> ModelProto:
    return make_model(generator)


def run(model: ModelProto, frame: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (damage,) = session.run(None, {"frame": frame})
    return damage


def ends(values: Any) -> dict[str, tuple[int, list[str | int]]]:
    return {
        v.name: (
            v.type.tensor_type.elem_type,
            [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim],
        )
        for v in values
    }


def test_inputs_outputs_and_spec_are_the_contract(model: ModelProto) -> None:
    u8 = TensorProto.UINT8
    assert ends(model.graph.input) == {"frame": (u8, ["N", "H", "W", 3])}
    assert ends(model.graph.output) == {"damage": (u8, ["N", "H", "W", 1])}
    assert {o.domain: o.version for o in model.opset_import} == {"": 19, "fastrestore": 1}
    assert read_spec(model.SerializeToString(), "m").kind == "detector"


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_its_functions_and_convolutions(name: str) -> None:
    preset = PRESETS[name]
    model = make_model(Generator(preset, outputs=1))
    onnx.checker.check_model(model, full_check=True)
    expected = {"PackPicture", "UnpackDamage"} | {
        f"ResidualBlockD{d}" for d in (1, *preset.dilations)
    }
    assert {f.name for f in model.functions} == expected
    assert {n.op_type for n in model.graph.node if n.domain} == expected
    network = [
        Convolution((c.kernel,) * 2, (c.stride,) * 2, (c.dilation,) * 2, (pad,) * 4)
        for c in preset.convs(preset.multiple, preset.multiple)
        for pad in [c.dilation if c.kernel == 3 else 0]
        if c.role != "up"
    ]
    luma = Convolution((1, 1), (1, 1), (1, 1), (0, 0, 0, 0))
    edges = Convolution((3, 3), (1, 1), (1, 1), (0, 0, 0, 0))
    assert convolutions(model) == sorted([*network, luma, edges])


@pytest.mark.parametrize("name", ["nano", "tiny"])
def test_equals_torch(name: str) -> None:
    generator = make_generator(name)
    parity = verify(make_model(generator), generator)
    assert parity.levels <= 1
    assert parity.values > 20_000


def test_the_comparison_has_something_to_compare(generator: Generator) -> None:
    inputs = list(random_inputs(8, np.random.default_rng(0)))
    levels = np.concatenate([detect_torch(generator, i)[0].ravel() for i in inputs])
    assert levels.min() < 64
    assert levels.max() > 192


def test_a_wrong_network_is_seen(generator: Generator, model: ModelProto) -> None:
    other = copy.deepcopy(generator)
    with torch.no_grad():
        other.head.conv.bias[1] += 0.1
    with pytest.raises(ModelError, match="levels off torch"):
        verify(model, other)


def test_formula(generator: Generator, model: ModelProto) -> None:
    """Channels as stated: r, g, b, 0, Sobel, 0, 0, 0; then round(255 * sigmoid(logit))."""
    frame = np.random.default_rng(3).integers(0, 256, (2, 40, 24, 3), np.uint8)
    x = torch.from_numpy(frame).permute(0, 3, 1, 2).float() / 255
    zero = torch.zeros(2, 1, 40, 24)
    edges = sobel((x * LUMA).sum(1, keepdim=True))
    with torch.no_grad():
        logits = generator(torch.cat([x, zero, edges, zero, zero, zero], 1))
    wanted = (255 * torch.sigmoid(logits)).round().permute(0, 2, 3, 1).numpy()
    got = run(model, frame)
    assert got.shape == (2, 40, 24, 1)
    assert np.abs(got - wanted).max() <= 1


def test_fp16_stays_close(model: ModelProto) -> None:
    frame = np.random.default_rng(3).integers(0, 256, (1, 64, 64, 3), np.uint8)
    half = run(to_fp16(inline(model)), frame).astype(int)
    assert np.abs(half - run(model, frame)).max() <= 4


def test_kind_and_outputs_must_agree(generator: Generator) -> None:
    three = make_generator("nano", 3)
    with pytest.raises(ModelError, match="a generator of 3 outputs makes no detector"):
        make_model(three)
    spec = ModelSpec("nano", "nano", 8, 64, 6, "free", "CC0-1.0")
    with pytest.raises(ModelError, match="a generator of 1 outputs makes no restorer"):
        build(copy.deepcopy(generator).fuse(), spec)


def test_the_file_and_its_card(generator: Generator, tmp_path: Path) -> None:
    path = tmp_path / "d.onnx"
    training = {
        "machine": "m",
        "stages": [],
        "held_out_iou": {"block": 0.9},
        "false_alarms_percent": {"clean": 0.1},
    }
    export_model(
        generator, path, name="d", track="free", licence="x", training=training, kind="detector"
    )
    spec = read_spec(path.read_bytes(), "d")
    assert (spec.kind, spec.multiple, 2**spec.levels, spec.halo) == ("detector", 8, 8, 64)
    card = write_card(path).read_text()
    assert "Finds damage" in card
    assert "block 0.9" in card
    assert "clean 0.1" in card
    assert "composite" not in card
    assert "invented" not in card
    count = sum(p.numel() for p in copy.deepcopy(generator).fuse().parameters())
    assert f"({count / 1e6:.2f} M parameters)" in card


@pytest.fixture
def folder(tmp_path: Path, generator: Generator) -> Path:
    """A run as training leaves it."""
    from fastrestore.train import checkpoint
    from fastrestore.train.config import TrainConfig

    config = TrainConfig(
        "nano", track="free", data=("/some/where/photos=2",), steps=5, task="detector"
    )
    record = {
        "config": config.to_json(),
        "step": 5,
        "crops": 40,
        "seconds": 9.0,
        "machine": "m",
        "history": [{"iou": {"block": 0.5}, "false_alarms_percent": {"clean": 2.0}}],
        "earlier": [{"model": "detector", "version": 1, "stages": []}],
    }
    weights = {f"ema.{k}": v for k, v in generator.state_dict().items()}
    checkpoint.save(tmp_path / "run", weights, record)
    return tmp_path


def export(monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    from fastrestore import cli

    monkeypatch.setattr(sys, "argv", ["fastrestore", "export", *args])
    with pytest.raises(SystemExit) as e:
        cli.main()
    assert isinstance(e.value.code, int)
    return e.value.code


def test_the_command_exports_a_detectors_run(
    folder: Path, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = folder / "mine.onnx"
    assert export(monkeypatch, str(folder / "run"), "-o", str(target)) == 0
    spec = read_spec(target.read_bytes(), "mine")
    assert (spec.kind, spec.name, spec.preset) == ("detector", "mine", "nano")
    assert spec.training["held_out_iou"] == {"block": 0.5}
    assert [list(s["data"]) for s in spec.training["stages"]] == [["photos"]]
    frame = np.random.default_rng(3).integers(0, 256, (1, 16, 16, 3), np.uint8)
    got, wanted = run(onnx.load(target), frame), run(make_model(generator), frame)
    assert np.array_equal(got, wanted)
    assert "percent of the pixels: clean 2.0" in target.with_suffix(".md").read_text()


def test_a_detector_has_no_stills_form(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = folder / "mine.onnx"
    assert export(monkeypatch, str(folder / "run"), "-o", str(target), "--stills") == 3
    assert capsys.readouterr().err.endswith("has no state; leave --stills away\n")
    assert not target.exists()
