"""Nodes that become plugins: which, with what weights, in what layout. No GPU, no TensorRT."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from fastrestore.errors import EngineError, FastRestoreError, ModelError
from fastrestore.export import functions, plugins
from fastrestore.export.graph import build, dilations
from fastrestore.export.parity import random_inputs
from fastrestore.export.plugins import Plugin, Prepared, prepare, read_plugins, unavailable
from fastrestore.export.precision import convolutions, inline, to_bf16, to_fp16
from fastrestore.kernels import launch, registry
from fastrestore.kernels.shipped import PluginKernel
from fastrestore.presets import PRESETS
from fastrestore.spec import ModelSpec
from fastrestore.train.generator import Generator

Array = npt.NDArray[Any]


def make_model(preset: str, state: bool = True) -> ModelProto:
    torch.manual_seed(0)
    p = PRESETS[preset]
    generator = Generator(p)
    with torch.no_grad():
        for weight in generator.parameters():
            if not weight.any():
                weight.normal_(std=0.02 if weight.ndim == 1 else 0.3 * weight[0].numel() ** -0.5)
    spec = ModelSpec(preset, preset, p.multiple, 64, 6, "free", "CC0-1.0")
    return build(generator.fuse(), spec, state)


@pytest.fixture(scope="module")
def model() -> ModelProto:
    return make_model("nano")


@pytest.fixture(scope="module")
def half(model: ModelProto) -> ModelProto:
    return to_fp16(model)


@pytest.fixture(scope="module")
def prepared(half: ModelProto) -> Prepared:
    return prepare(half)


def plugin_nodes(model: ModelProto) -> list[NodeProto]:
    return [n for n in model.graph.node if n.domain == plugins.DOMAIN]


def run(model: ModelProto, feed: Mapping[str, Array]) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    results: list[Array] = onnxruntime.InferenceSession(model.SerializeToString(), options).run(
        None, dict(feed)
    )
    return results


def call(plugin: Plugin, feed: Mapping[str, Array]) -> list[Array]:
    """Run one function as ONNX Runtime has it, in FP32."""
    kernel = next(iter(plugin.kernels.values()))
    dilation = [int(kernel.constants.get("dilation", 1))]
    bodies = [f for f in functions.make_functions(dilation) if f.name == plugin.name]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, feed[n].shape) for n in feed]
    results = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in plugin.outputs]
    node = helper.make_node(plugin.name, list(feed), plugin.outputs, domain=plugins.DOMAIN)
    opsets = [helper.make_opsetid("", 19), helper.make_opsetid(plugins.DOMAIN, 1)]
    graph = helper.make_graph([node], "call", values, results)
    whole = helper.make_model(graph, opset_imports=opsets, functions=bodies, ir_version=10)
    return run(whole, {n: x.astype(np.float32) for n, x in feed.items()})


def block_weights(c: int) -> dict[str, Array]:
    """Weights of one block in ONNX's order; no two axes could be swapped unseen."""
    rng = np.random.default_rng(c)
    w3 = rng.normal(size=(c, c, 3, 3)) / np.sqrt(9 * c)
    w1 = rng.normal(size=(c, c, 1, 1)) / np.sqrt(c)
    b3, b1 = rng.normal(size=(2, c))
    arrays = {"w3": w3, "b3": b3, "w1": w1, "b1": b1}
    return {name: x.astype(np.float16) for name, x in arrays.items()}


def block_model(c: int, dilation: int) -> ModelProto:
    """An FP16 model of one residual block."""
    weights = [numpy_helper.from_array(x, n) for n, x in block_weights(c).items()]
    name = f"ResidualBlockD{dilation}"
    node = helper.make_node(name, ["x", "w3", "b3", "w1", "b1"], ["y"], "a", domain=plugins.DOMAIN)
    shape = ["N", c, "H", "W"]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT16, shape) for n in "xy"]
    body = functions.residual_block(dilation)
    opsets = [helper.make_opsetid("", 19), helper.make_opsetid(plugins.DOMAIN, 1)]
    graph = helper.make_graph([node], "block", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=opsets, functions=[body], ir_version=10)


def laid_out(model: ModelProto) -> dict[str, Array]:
    """What the plugin of a `block_model` is handed, by the names of the function."""
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    (node,) = plugin_nodes(model)
    names = ("w3", "b3", "w1", "b1")
    return {n: arrays[i] for n, i in zip(names, node.input[1:], strict=True)}


def test_needs_neither_torch_nor_triton() -> None:
    code = (
        "import sys; from fastrestore.export import plugins; plugins.read_plugins(); "
        "print([m for m in ('torch', 'triton', 'tensorrt') if m in sys.modules])"
    )
    root = Path(__file__).resolve().parents[2]
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "[]"


def test_names_are_those_of_the_functions() -> None:
    assert functions.DOMAIN == plugins.DOMAIN
    every = {d for p in PRESETS.values() for d in dilations(p)}
    bodies = {f.name: f for f in functions.make_functions(sorted(every))}
    found = read_plugins()
    assert set(found) == {n for n in bodies if n.startswith(("ResidualBlock", "Pack", "Unpack"))}
    for name, plugin in found.items():
        assert [f"{name}/{i}" for i in plugin.inputs] == list(bodies[name].input)
        assert [f"{name}/{o}" for o in plugin.outputs] == list(bodies[name].output)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_node_of_a_preset_has_its_kernel(preset: str) -> None:
    p = PRESETS[preset]
    made = prepare(to_fp16(make_model(preset)))
    blocks = sum(p.encoder) + p.middle + len(p.dilations) + sum(p.decoder)
    assert made.inlined == ()
    assert len(plugin_nodes(made.model)) == blocks + 2
    assert set(made.wanted) == {n.op_type for n in plugin_nodes(made.model)}
    assert {k: r.sha256 for k, r in made.records.items()} == {
        k.name: k.sha256 for k in made.kernels.values()
    }


def test_plugin_nodes_keep_their_attributes_and_lose_their_bodies(prepared: Prepared) -> None:
    for node in plugin_nodes(prepared.model):
        found = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        assert found == {"plugin_namespace": b"fastrestore", "plugin_version": b"1", "aot": 1}
    assert not prepared.model.functions
    names = [n.name for n in prepared.model.graph.node]
    assert len(set(names)) == len(names)
    assert "" not in names
    onnx.checker.check_model(prepared.model)


def test_convolutions_that_are_left_are_those_outside_plugins(
    model: ModelProto, prepared: Prepared
) -> None:
    left = convolutions(prepared.model)
    p = PRESETS["nano"]
    blocks = sum(p.encoder) + p.middle + len(p.dilations) + sum(p.decoder)
    assert len(left) == len(convolutions(model)) - 2 * blocks - 2  # luma and Sobel
    assert all(c.dilations == (1, 1) for c in left)


def test_the_model_is_not_changed(half: ModelProto) -> None:
    before = half.SerializeToString(deterministic=True)
    prepare(half)
    assert half.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(("c", "dilation"), [(16, 1), (64, 2)])
def test_weights_are_laid_out_as_the_kernels_read_them(c: int, dilation: int) -> None:
    made = prepare(block_model(c, dilation))
    w = laid_out(made.model)
    assert {x.dtype.name for x in w.values()} == {"float16"}
    assert (w["w3"].shape, w["w1"].shape) == ((9 * c, c), (c, c))
    x = np.random.default_rng(1).normal(size=(2, 9, 11, c)).astype(np.float32)
    d, (_, height, width, _) = dilation, x.shape
    padded = np.pad(x, ((0, 0), (d, d), (d, d), (0, 0)))
    total = np.zeros_like(x) + w["b3"].astype(np.float32)
    for tap in range(9):
        y, left = tap // 3 * d, tap % 3 * d
        part = padded[:, y : y + height, left : left + width]
        total += part @ w["w3"][tap * c : tap * c + c].astype(np.float32)
    got = x + np.maximum(total, 0) @ w["w1"].astype(np.float32) + w["b1"].astype(np.float32)
    plugin = read_plugins()[f"ResidualBlockD{dilation}"]
    (want,) = call(plugin, {"x": x.transpose(0, 3, 1, 2), **block_weights(c)})
    assert np.abs(got.transpose(0, 3, 1, 2) - want).max() < 2e-5


def undo_layout(model: ModelProto, before_it: ModelProto) -> ModelProto:
    """Give plugin nodes their bodies again, changed to start from the weights a plugin gets."""
    called = {n.op_type for n in plugin_nodes(model)}
    out = ModelProto()
    out.CopyFrom(model)
    out.functions.extend(f for f in before_it.functions if f.name in called)
    for body in out.functions:
        if body.name.startswith("ResidualBlock"):
            before = onnx_order(body.name)
            new = {f"{body.name}/w3": before[-2].output[0], f"{body.name}/w1": before[-1].output[0]}
            nodes = [NodeProto.FromString(n.SerializeToString()) for n in body.node]
            for node in nodes:
                node.input[:] = [new.get(i, i) for i in node.input]
            del body.node[:]
            body.node.extend([*before, *nodes])
    return out


def onnx_order(p: str) -> list[NodeProto]:
    """Nodes that turn the two weights of a block back; the last two make w3 and w1."""

    def constant(name: str, values: list[int]) -> NodeProto:
        value = numpy_helper.from_array(np.array(values), f"{p}/{name}")
        return helper.make_node("Constant", [], [f"{p}/{name}"], value=value)

    def make(kind: str, inputs: str, out: str, **attributes: Any) -> NodeProto:
        names = [f"{p}/{i}" for i in inputs.split()]
        return helper.make_node(kind, names, [f"{p}/{out}"], **attributes)

    return [
        constant("three", [3, 3]),
        constant("axes", [2, 3]),
        make("Shape", "w1", "cc"),
        make("Concat", "three cc", "yxio", axis=0),
        make("Reshape", "w3 yxio", "taps"),
        make("Transpose", "w1", "oi", perm=[1, 0]),
        make("Transpose", "taps", "oiyx", perm=[3, 2, 0, 1]),
        make("Unsqueeze", "oi axes", "oi11"),
    ]


def test_the_whole_model_is_wired_as_before(half: ModelProto, prepared: Prepared) -> None:
    again = undo_layout(prepared.model, half)
    for x in islice(random_inputs(8, np.random.default_rng(0)), 0, 8, 3):
        feed = {"frame": x.frame, "mask": x.mask, "state": x.state, "sigma": x.sigma}
        for got, want in zip(run(again, feed), run(half, feed), strict=True):
            assert np.array_equal(got, want)


def hand_over(array: Array, layout: str) -> torch.Tensor:
    """Return memory as TensorRT lays it out; what pads channels is no number."""
    x = array.astype(np.float16)
    if layout == "HWC8":
        x = x.transpose(0, 2, 3, 1)
        padding = -x.shape[3] % 8
        x = np.pad(x, ((0, 0), (0, 0), (0, 0), (0, padding)), constant_values=np.nan)
    return torch.from_numpy(np.ascontiguousarray(x))


def launch_plugin(plugin: Plugin, kernel: PluginKernel, feed: dict[str, Array]) -> list[Array]:
    """Run the shipped kernel in Triton's interpreter, on memory and arguments as TensorRT's."""
    sizes = sizes_of(feed)
    n, height, width = (sizes[s] for s in ("n", "height", "width"))
    layouts = dict(zip((*plugin.inputs, *plugin.outputs), plugin.formats, strict=True))
    shapes = {
        "packed": (n, 32, height // 2, width // 2),
        "next": (n, height, width, 4),
        "restored": (n, height, width, 3),
        "y": feed["x"].shape if "x" in feed else (),
    }
    given = [hand_over(feed[i], layouts[i]) for i in plugin.inputs]
    made = [hand_over(np.full(shapes[o], np.nan), layouts[o]) for o in plugin.outputs]
    record = next(r for r in registry.launches() if r.name == kernel.name)
    extra = [sizes[s] for s in plugins.scalars(kernel.arguments)]
    record(sizes, *given, *extra, *made)
    results = []
    for name, tensor in zip(plugin.outputs, made, strict=True):
        x = tensor.numpy().astype(np.float32)
        results.append(x.transpose(0, 3, 1, 2) if layouts[name] == "HWC8" else x)
    return results


def sizes_of(feed: Mapping[str, Array]) -> dict[str, int]:
    """What a grid and scalars may name, from the shapes a plugin is handed."""
    if "x" in feed:
        n, _, height, width = feed["x"].shape
    elif "frame" in feed:
        n, height, width, _ = feed["frame"].shape
    else:
        n, _, height, width = feed["packed"].shape
        height, width = 2 * height, 2 * width
    return {"n": n, "height": height, "width": width, "pixels": n * height * width}


needs_interpreter = pytest.mark.skipif(
    not launch.INTERPRETED, reason="a CUDA device is here: Triton does not interpret"
)


@needs_interpreter
@pytest.mark.parametrize(("c", "dilation"), [(16, 1), (64, 4)])
def test_the_kernel_of_a_block_computes_the_function(c: int, dilation: int) -> None:
    plugin = read_plugins()[f"ResidualBlockD{dilation}"]
    x = np.random.default_rng(2).normal(size=(2, c, 7, 9)).astype(np.float16)
    feed = {"x": x, **laid_out(prepare(block_model(c, dilation)).model)}
    (got,) = launch_plugin(plugin, plugin.kernels[c], feed)
    (want,) = call(plugin, {"x": x, **block_weights(c)})
    assert np.abs(got - want).max() < 8e-3


@needs_interpreter
def test_the_kernels_at_both_ends_compute_the_functions() -> None:
    """PackFrame, and UnpackFrame of its result."""
    rng = np.random.default_rng(3)
    n, height, width = 1, 8, 24

    def levels(*shape: int) -> Array:
        return rng.integers(0, 256, (n, *shape)).astype(np.float16)

    feed: dict[str, Array] = {
        "frame": levels(height, width, 3),
        "mask": levels(height, width, 1) * (rng.random((n, height, width, 1)) < 0.3),
        "state": levels(height, width, 4),
        "sigma": np.full((n, 1, 1, 1), 20, np.float16),
        "f": rng.random((n, 4, height // 2, width // 2)).astype(np.float16),
        "motion": (rng.random((n, 1, height // 8, width // 8)) * 6 - 1).astype(np.float16),
    }
    found = read_plugins()
    pack, unpack = found["PackFrame"], found["UnpackFrame"]
    packed, following = launch_plugin(pack, pack.kernels[0], feed)
    want_packed, want_next = call(pack, feed)
    assert np.abs(packed - want_packed).max() < 2**-10
    assert np.abs(following - want_next).max() <= 1
    ends = {"residual": rng.random((n, 12, height // 2, width // 2)) - 0.5, "packed": want_packed}
    ends = {name: x.astype(np.float16) for name, x in ends.items()}
    (restored,) = launch_plugin(unpack, unpack.kernels[0], ends)
    assert np.abs(restored - call(unpack, ends)[0]).max() <= 1


def without(name: str) -> dict[str, Plugin]:
    """All plugins but one kernel."""
    found = {}
    for key, plugin in read_plugins().items():
        kernels = {c: k for c, k in plugin.kernels.items() if k.name != name}
        found[key] = replace(plugin, kernels=kernels)
    return found


def test_a_width_without_a_kernel_is_inlined_alone(half: ModelProto) -> None:
    made = prepare(half, without("residual_block_plugin_c32_d1"))
    assert made.inlined == ("ResidualBlockD1: at 32 channels no kernel ships",)
    names = {n.name for n in plugin_nodes(made.model)}
    assert "middle.0" in names
    assert not names & {"encoder.1.0", "decoder.1.0"}
    assert not made.model.functions


def test_without_plugins_everything_is_inlined(half: ModelProto) -> None:
    made = prepare(half, {})
    assert (made.wanted, made.kernels, made.inlined) == ((), {}, ())
    assert len(made.model.graph.node) == len(inline(half).graph.node)


def test_stills_have_no_kernel_for_their_first_node() -> None:
    made = prepare(to_fp16(make_model("nano", state=False)))
    assert made.inlined == ("PackFrame: with 4 inputs (no past) no kernel ships",)
    assert "UnpackFrame" in made.wanted
    assert "PackFrame" not in made.wanted


def test_an_inlined_model_comes_back_without_plugins(half: ModelProto) -> None:
    made = prepare(inline(half))
    assert (made.wanted, made.inlined) == ((), ())


def test_blocks_that_share_weights_share_the_layout(half: ModelProto) -> None:
    shared = ModelProto()
    shared.CopyFrom(half)
    first, second = (
        next(n for n in plugin_nodes(shared) if n.name == name) for name in ("middle.0", "middle.1")
    )
    second.input[1:] = first.input[1:]
    made = prepare(shared)
    names = [t.name for t in made.model.graph.initializer]
    assert len(set(names)) == len(names)
    assert not any(n.startswith("middle.1.") for n in names)
    inputs = {n.name: list(n.input[1:]) for n in plugin_nodes(made.model)}
    assert inputs["middle.0"] == inputs["middle.1"]


@pytest.mark.parametrize("convert", [lambda m: m, to_bf16])
def test_another_precision_is_refused(model: ModelProto, convert: Any) -> None:
    with pytest.raises(EngineError, match=r"is not FP16.*--precision fp16"):
        prepare(convert(model))


def test_a_call_without_body_or_kernel_is_refused(half: ModelProto) -> None:
    broken = ModelProto()
    broken.CopyFrom(half)
    del broken.functions[:]
    with pytest.raises(ModelError, match="neither kernel nor body"):
        prepare(broken, without("residual_block_plugin_c32_d1"))


@pytest.mark.parametrize(
    ("product", "module", "sm", "reason"),
    [
        ("tensorrt_rtx", SimpleNamespace(), "8.9", "TensorRT-RTX takes no kernels from outside"),
        ("tensorrt", SimpleNamespace(__version__="10.3.0"), "8.7", "10.3.0 is older than 10.9"),
        ("tensorrt", SimpleNamespace(QuickPluginCreationRequest=0), "7.5", "7.5 is below 8.0"),
    ],
)
def test_where_plugins_are_not_it_says_why(product: Any, module: Any, sm: str, reason: str) -> None:
    line = unavailable(product, module, sm)
    assert line is not None
    assert reason in line
    assert line.startswith("plugins: ")
    assert line.endswith("own kernels")
    assert "\n" not in line


@pytest.mark.parametrize("sm", [None, "8.0", "8.7", "12.0"])
def test_where_plugins_are_it_says_nothing(sm: str | None) -> None:
    assert unavailable("tensorrt", SimpleNamespace(QuickPluginCreationRequest=0), sm) is None


def test_register_refuses_what_does_not_ship() -> None:
    with pytest.raises(EngineError, match=r"PullLevel: no kernel ships.*--plugins off"):
        plugins.register(SimpleNamespace(op=SimpleNamespace()), ["PullLevel"])


def test_register_leaves_alone_what_is_known() -> None:
    known = SimpleNamespace(fastrestore=SimpleNamespace(PackFrame=object()))
    plugins.register(SimpleNamespace(op=known), ["PackFrame"])  # has no `register` to call


def test_register_says_what_tensorrt_says() -> None:
    def refuse(_: str) -> Any:
        raise ValueError("signature\nis odd")

    module = SimpleNamespace(
        op=SimpleNamespace(),
        register=refuse,
        TensorDesc=int,
        KernelLaunchParams=int,
        SymIntExprs=int,
        AutoTuneCombination=int,
    )
    with pytest.raises(EngineError, match=r"PackFrame: .*signature is odd") as e:
        plugins.register(module, ["PackFrame"])
    assert "\n" not in str(e.value)


def test_load_without_tensorrt_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(FastRestoreError, match=r"tensorrt.plugin: does not import.*--plugins off"):
        plugins.load()
