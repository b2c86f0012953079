"""The generator from a model file's weights equals the same layers in ONNX Runtime."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton", reason="the extra kernels is not installed")
onnx = pytest.importorskip("onnx", reason="the extra kernels is not installed")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from fastrestore.backend import find_model  # noqa: E402
from fastrestore.errors import InputError, MissingExtraError, ModelError  # noqa: E402
from fastrestore.kernels import network as module  # noqa: E402
from fastrestore.kernels.network import Network  # noqa: E402
from fastrestore.kernels.residual_block import OPERATOR  # noqa: E402
from fastrestore.kernels.unpack import PADDED_CHANNELS  # noqa: E402
from fastrestore.kernels.weights import ModelFile, read_weights, shapes  # noqa: E402
from fastrestore.presets import PRESETS  # noqa: E402

CPU = torch.device("cpu")


def model_file(name: str) -> ModelFile:
    return read_weights(find_model(name).read_bytes(), name, name, "kernels")


def in_onnx_runtime(name: str, packed: Any) -> Any:
    """Run the shipped file's own nodes from `packed` to `head`; NHWC in, NHWC out."""
    import onnxruntime

    whole = onnx.load_model_from_string(find_model(name).read_bytes())
    names = [n.name for n in whole.graph.node]
    nodes = whole.graph.node[names.index("stem") : names.index("head") + 1]
    ends = [
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [None] * 4)
        for n in ("packed", "head")
    ]
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], whole.graph.initializer)
    part = onnx.helper.make_model(
        graph,
        opset_imports=whole.opset_import,
        functions=whole.functions,
        ir_version=whole.ir_version,
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(part.SerializeToString(), options)
    (head,) = session.run(None, {"packed": packed.permute(0, 3, 1, 2).contiguous().numpy()})
    return torch.from_numpy(head).permute(0, 2, 3, 1)


def make_packed(height: int, width: int, n: int = 1) -> Any:
    """What `pack` makes, more or less: eight channels of 0 to 1, the last two zero."""
    seed = torch.Generator().manual_seed(height + width)
    packed = torch.rand(n, height // 2, width // 2, 4, 8, generator=seed)
    packed[..., 6:] = 0
    return packed.flatten(3)


@pytest.mark.parametrize("size", [(64, 64), (80, 112)])
@pytest.mark.parametrize("name", ["nano", "tiny"])
def test_equals_onnx_runtime(name: str, size: tuple[int, int]) -> None:
    packed = make_packed(*size, n=2)
    with torch.no_grad():
        head = Network(model_file(name), CPU, torch.float32)(packed)
    assert head.shape == (*packed.shape[:3], PADDED_CHANNELS)
    wanted = in_onnx_runtime(name, packed)
    assert float(wanted.abs().max()) > 0.05
    assert float((head[..., :12] - wanted).abs().max()) < 1e-5
    assert not head[..., 12:].any()


class Copies(TorchDispatchMode):
    """Collects every operator that moves a tensor without computing."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func).split(".")[1] in ("clone", "copy_", "_to_copy", "contiguous", "cat"):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["nano", "tiny"])
def test_activations_stay_where_they_are(name: str) -> None:
    """Every hand-over is a view: the memory is NHWC from pack to unpack."""
    network = Network(model_file(name), CPU, torch.float32)
    packed = make_packed(64, 96)
    before = packed.clone()
    with torch.no_grad(), Copies() as copies:
        head = network(packed)
    assert copies.found == []
    assert head.is_contiguous()
    assert torch.equal(packed, before)


def test_our_block_gets_the_weights_that_torch_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's forms of the weights, computed by the operator's reference."""
    calls: list[tuple[int, bool]] = []

    def block(x: Any, *weights: Any) -> Any:
        calls.append((weights[-1], x.is_contiguous()))
        return OPERATOR.reference(x, *weights)

    monkeypatch.setattr(module, "residual_block", block)
    packed = make_packed(32, 48)
    file = model_file("nano")
    with torch.no_grad():
        native = Network(file, CPU, torch.float32, "native")(packed)
        assert calls == []
        ours = Network(file, CPU, torch.float32, "kernel")(packed)
    assert calls == [(1, True), (1, True), (1, True), (2, True), (4, True), (1, True)]
    assert 0 < float((ours - native).abs().max()) < 2e-3  # float16 between the blocks


def test_auto_takes_our_kernel_where_it_was_measured_faster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    widths: list[int] = []

    def block(x: Any, *weights: Any) -> Any:
        widths.append(x.shape[-1])
        return OPERATOR.reference(x, *weights)

    monkeypatch.setattr(module, "residual_block", block)
    packed, file = make_packed(32, 32), model_file("nano")
    Network(file, CPU, torch.float32)(packed)
    assert widths == []  # no device timing is in this repository
    monkeypatch.setattr(module, "FASTER_WIDTHS", frozenset({32}))
    Network(file, CPU, torch.float32)(packed)
    assert widths == [32, 32]


def test_unknown_choice_of_blocks_is_refused() -> None:
    with pytest.raises(InputError, match=r"^blocks fast: not known; choose one of auto, kernel"):
        Network(model_file("nano"), CPU, torch.float32, "fast")  # type: ignore[arg-type]


@pytest.mark.parametrize("outputs", [4, 16])
def test_a_head_that_is_no_restorers_is_refused(outputs: int) -> None:
    file = model_file("nano")
    head = {
        name: np.resize(file.weights[name], (outputs, *file.weights[name].shape[1:]))
        for name in ("head.conv.weight", "head.conv.bias")
    }
    other = replace(file, weights={**file.weights, **head})
    with pytest.raises(ModelError, match=f"^head: has {outputs} outputs, a restorer's has 12; "):
        Network(other, CPU, torch.float32)


# The file.


@pytest.mark.parametrize("name", PRESETS)
def test_shapes_count_every_parameter(name: str) -> None:
    preset = PRESETS[name]
    assert sum(int(np.prod(s)) for s in shapes(preset, 12).values()) == preset.parameters


def test_ends_of_the_graph_are_told() -> None:
    file = model_file("tiny")
    assert set(file.inputs) == {"frame", "mask", "state", "sigma"}
    assert set(file.outputs) == {"restored", "state_out"}
    assert file.preset == PRESETS["tiny"]


def changed(change: Any) -> bytes:
    model = onnx.load_model_from_string(find_model("nano").read_bytes())
    change({w.name: w for w in model.graph.initializer}, model.graph.initializer)
    return bytes(model.SerializeToString())


def cut(by_name: Any, weights: Any) -> None:
    by_name["down.1.weight"].raw_data = by_name["down.1.weight"].raw_data[:8]


def drop(by_name: Any, weights: Any) -> None:
    weights.remove(by_name["up.0.bias"])


def add(by_name: Any, weights: Any) -> None:
    weights.append(onnx.numpy_helper.from_array(np.zeros(3, np.float32), "more.weight"))


def widen(by_name: Any, weights: Any) -> None:
    by_name["stem.conv.weight"].dims[:] = [32, 16, 3, 3]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\xff" * 9, r"its weights cannot be read \("),
        (b"", "its layers are not those of a nano generator"),
        (cut, r"its weights cannot be read \("),
        (drop, "its layers are not those of a nano generator"),
        (add, "its layers are not those of a nano generator"),
        (widen, "its layers are not those of a nano generator"),
    ],
)
def test_other_files_are_one_line(data: Any, words: str) -> None:
    model = data if isinstance(data, bytes) else changed(data)
    with pytest.raises(ModelError, match=f"^mine: {words}") as e:
        read_weights(model, "nano", "mine", "kernels")
    assert "\n" not in str(e.value)


def test_unknown_preset_is_named() -> None:
    with pytest.raises(ModelError, match=r"^mine: preset huge is not known to this version"):
        read_weights(b"", "huge", "mine", "kernels")


def test_without_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"fastrestore\[kernels\]"):
        read_weights(b"", "nano", "mine", "kernels")


@pytest.mark.gpu
@pytest.mark.parametrize("blocks", ["native", "kernel"])
@pytest.mark.parametrize("name", ["nano", "tiny"])
def test_on_a_gpu(name: str, blocks: Any) -> None:
    packed = make_packed(80, 112, n=2)
    wanted = in_onnx_runtime(name, packed)
    network = Network(model_file(name), torch.device("cuda"), torch.float16, blocks)
    given = packed.cuda().half()
    with torch.no_grad(), Copies() as copies:
        head = network(given)
    assert copies.found == []
    assert head.is_contiguous()
    assert float((head[..., :12].cpu().float() - wanted).abs().max()) < 4e-3
