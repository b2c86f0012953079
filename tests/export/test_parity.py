"""The proof of an exported file, that it fails when it must, and that nothing is then written."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper

from fastrestore.errors import ModelError, OutputError
from fastrestore.export import export
from fastrestore.export.export import export_model
from fastrestore.export.graph import build
from fastrestore.export.parity import MAX_SHARE, Parity, random_inputs, run_torch, verify
from fastrestore.export.precision import inline, to_fp16
from fastrestore.presets import PRESETS
from fastrestore.spec import ModelSpec, read_spec
from fastrestore.train.generator import Generator


def make_generator(preset: str) -> Generator:
    """Random, with no weight at zero; corrections of a few grey levels."""
    torch.manual_seed(0)
    generator = Generator(PRESETS[preset])
    with torch.no_grad():
        for p in generator.parameters():
            if not p.any():
                p.normal_(std=0.02 if p.ndim == 1 else 0.3 * p[0].numel() ** -0.5)
    return generator


def make_model(generator: Generator, state: bool = True) -> ModelProto:
    p = generator.preset
    spec = ModelSpec(p.name, p.name, p.multiple, 64, 6, "free", "CC0-1.0")
    return build(copy.deepcopy(generator).fuse(), spec, state)


def changed(model: ModelProto) -> ModelProto:
    new = ModelProto()
    new.CopyFrom(model)
    return new


def save(generator: Generator, target: Path, **options: bool) -> Parity:
    return export_model(generator, target, name="mine", track="free", licence="CC0-1.0", **options)


@pytest.fixture(scope="module")
def generator() -> Generator:
    return make_generator("nano")


@pytest.fixture(scope="module")
def model(generator: Generator) -> ModelProto:
    return make_model(generator)


def test_nano_equals_torch(generator: Generator, model: ModelProto) -> None:
    parity = verify(model, generator)
    assert parity.levels <= 1
    assert parity.share <= MAX_SHARE
    assert parity.cases == 24
    assert parity.values > 500_000
    assert parity.nodes == len(inline(model).graph.node)


def test_stills_graph_equals_torch_without_history(generator: Generator) -> None:
    assert verify(make_model(generator, state=False), generator).levels <= 1


@pytest.mark.parametrize("preset", ["tiny", "base"])
def test_larger_presets_equal_torch(preset: str) -> None:
    generator = make_generator(preset)
    assert verify(make_model(generator), generator).levels <= 1


def test_cases_cover_what_they_claim() -> None:
    inputs = list(random_inputs(8, np.random.default_rng(0)))
    assert {i.frame.shape[0] for i in inputs} == {1, 2, 3}
    assert all(side % 16 == 8 for i in inputs for side in i.frame.shape[1:3])
    ratios = [float((i.mask > 0).mean()) for i in inputs]
    assert {0.0, 1.0} < set(ratios)
    assert any(0.99 < r < 1 for r in ratios)
    assert any(not i.state.any() for i in inputs)
    sigmas = np.concatenate([i.sigma for i in inputs])
    assert sigmas.min() == 0
    assert 40 < sigmas.max() < 75
    difference = [np.abs(i.frame.astype(int) - i.state[..., :3]).mean() for i in inputs]
    assert min(difference) < 6


def test_corrections_matter_in_the_comparison(generator: Generator) -> None:
    """Else a network written wrongly could pass: identity and network must differ."""
    identity = Generator(generator.preset)
    inputs = list(random_inputs(8, np.random.default_rng(0)))[8]
    ours, theirs = run_torch(generator, inputs)[0], run_torch(identity, inputs)[0]
    assert np.mean(ours != theirs) > 0.3


def test_known_pixels_come_back_byte_for_byte_and_any_mask_value_is_a_hole(
    model: ModelProto,
) -> None:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    rng = np.random.default_rng(1)
    frame = rng.integers(0, 256, (2, 40, 56, 3), np.uint8)
    mask = np.zeros((2, 40, 56, 1), np.uint8)
    mask[:, 8:20, 16:40] = 1
    state, sigma = np.zeros((2, 40, 56, 4), np.uint8), np.zeros(2, np.float32)
    feed = {"frame": frame, "mask": mask, "state": state, "sigma": sigma}
    restored, after = session.run(None, feed)
    known = mask[..., 0] == 0
    assert np.array_equal(restored[known], frame[known])
    assert np.array_equal(after[known][:, :3], frame[known])
    assert not after[~known][:, 3].any()
    white = session.run(None, {**feed, "mask": mask * 255})
    assert np.array_equal(white[0], restored)
    other = np.where(known[..., None], frame, 99).astype(np.uint8)
    assert np.array_equal(session.run(None, {**feed, "frame": other})[0], restored)


def test_another_generator_is_told_apart(model: ModelProto) -> None:
    with pytest.raises(ModelError, match=r"up to \d+ levels off torch on \d+\.\d+% of the values"):
        verify(model, Generator(PRESETS["nano"]))


def lose_weight(m: ModelProto) -> None:
    weight = next(t for t in m.graph.initializer if t.name == "stem.conv.weight")
    bad = numpy_helper.to_array(weight).copy()
    bad.flat[0] = np.nan
    weight.CopyFrom(numpy_helper.from_array(bad, weight.name))


def transpose_uint8(m: ModelProto) -> None:
    node = helper.make_node("Transpose", ["frame"], ["turned"], "turn", perm=[0, 1, 2, 3])
    cast = next(n for n in m.graph.node if n.input[0] == "frame")
    cast.input[0] = "turned"
    m.graph.node.insert(0, node)


def block(m: ModelProto) -> onnx.FunctionProto:
    return next(f for f in m.functions if f.name == "ResidualBlockD2")


def refer_to_attribute(m: ModelProto) -> None:
    conv = next(n for n in block(m).node if n.op_type == "Conv")
    dilations = next(a for a in conv.attribute if a.name == "dilations")
    dilations.ClearField("ints")
    dilations.ref_attr_name = "dilations"
    block(m).attribute.append("dilations")
    for call in m.graph.node:
        if call.op_type == "ResidualBlockD2":
            call.attribute.append(helper.make_attribute("dilations", [2, 2]))


def cast_in_function(m: ModelProto) -> None:
    unpack = next(f for f in m.functions if f.name == "UnpackFrame")
    last = unpack.node[-1]
    last.output[0] = "UnpackFrame/levels"
    to_u8 = helper.make_node("Cast", list(last.output), list(unpack.output), "UnpackFrame/u8", to=2)
    unpack.node.append(to_u8)


def drop_prefix(m: ModelProto) -> None:
    f = block(m)
    f.input[0] = "x"
    for node in f.node:
        node.input[:] = ["x" if i == "ResidualBlockD2/x" else i for i in node.input]


def take_operator_name(m: ModelProto) -> None:
    for named in (*m.functions, *m.graph.node):
        if isinstance(named, onnx.FunctionProto) and named.name == "MeanFill":
            old, named.name = named.name, "Mean"
            for node in named.node:
                node.name = node.name.replace(old, "Mean")
        elif isinstance(named, onnx.NodeProto) and named.op_type == "MeanFill":
            named.op_type = "Mean"


def drop_plugin_attribute(m: ModelProto) -> None:
    call = next(n for n in m.graph.node if n.op_type == "PackFrame")
    del call.attribute[:]


def drop_spec(m: ModelProto) -> None:
    del m.metadata_props[:]


def older_ir(m: ModelProto) -> None:
    m.ir_version = 9


def break_type(m: ModelProto) -> None:
    m.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lose_weight, "weights stem.conv.weight are not finite"),
        (transpose_uint8, "uint8 value frame meets"),
        (refer_to_attribute, "attribute reference in ResidualBlockD2/"),
        (cast_in_function, "cast to uint8 in UnpackFrame/"),
        (drop_prefix, "x in function ResidualBlockD2 lacks the prefix"),
        (take_operator_name, "function Mean has the name of an ONNX operator"),
        (drop_plugin_attribute, "call packed lacks aot, plugin_namespace, plugin_version"),
        (drop_spec, "no fastrestore spec"),
        (older_ir, "opset 19, IR 9; must be 19, 10"),
        (break_type, r"onnx\.checker refuses it"),
    ],
)
def test_each_broken_rule_is_named_in_one_line(
    generator: Generator, model: ModelProto, harm: Callable[[ModelProto], None], message: str
) -> None:
    bad = changed(model)
    harm(bad)
    with pytest.raises(ModelError, match=message) as e:
        verify(bad, generator)
    assert "\n" not in str(e.value)


def test_export_writes_one_file_that_says_what_it_is(generator: Generator, tmp_path: Path) -> None:
    before = {k: v.clone() for k, v in generator.state_dict().items()}
    target = tmp_path / "mine.onnx"
    target.write_bytes(b"an older one")
    assert save(generator, target).levels <= 1
    assert [p.name for p in tmp_path.iterdir()] == ["mine.onnx"]
    spec = read_spec(target.read_bytes(), "mine.onnx")
    assert (spec.name, spec.preset, spec.multiple, spec.halo) == ("mine", "nano", 8, 64)
    after = generator.state_dict()
    assert before.keys() == after.keys()  # the training branches are still there
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_failed_export_leaves_the_old_file(tmp_path: Path) -> None:
    generator = make_generator("nano")
    with torch.no_grad():
        generator.head.conv.weight[0] = torch.nan
    target = tmp_path / "mine.onnx"
    target.write_bytes(b"an older one")
    with pytest.raises(ModelError, match=r"mine\.onnx: not written: model: weights .* not finite"):
        save(generator, target)
    assert target.read_bytes() == b"an older one"
    assert len(list(tmp_path.iterdir())) == 1


def test_unwritable_target_is_an_output_error(
    generator: Generator, model: ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "verify", lambda *_: Parity(1, 1, 0, 0.0, 1))
    with pytest.raises(OutputError, match=r"mine\.onnx: its folder does not exist"):
        save(generator, tmp_path / "absent" / "mine.onnx")
    (tmp_path / "mine.onnx").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        save(generator, tmp_path / "mine.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["mine.onnx"]


def test_simplified_file_is_verified_and_still_has_its_functions(
    generator: Generator, tmp_path: Path
) -> None:
    pytest.importorskip("onnxsim", reason="onnxsim is not installed (needs Python 3.11)")
    target = tmp_path / "mine.onnx"
    assert save(generator, target, simplify=True).levels <= 1
    model = onnx.load_from_string(target.read_bytes())
    assert "PackFrame" in {f.name for f in model.functions}
    onnx.checker.check_model(to_fp16(model), full_check=True)
