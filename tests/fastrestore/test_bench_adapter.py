"""Other programs' ONNX files, called as their adapters say: files made here, answers known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastrestore.arrays import U8
from fastrestore.bench.adapter import ADAPTERS, Adapted, Adapter, find_adapter
from fastrestore.bench.rivals import Rivals
from fastrestore.bench.scene import scene
from fastrestore.errors import InputError, MissingExtraError, ModelError

onnx = pytest.importorskip("onnx", reason="the extra openvino is not installed")
FLOAT, HALF, BYTES = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.UINT8,
)
ANY = ["n", 3, "h", "w"]


def save(
    path: Path,
    nodes: list[Any],
    inputs: dict[str, tuple[int, list[Any]]],
    output: tuple[int, list[Any]],
    constants: dict[str, Any] | None = None,
) -> str:
    make = onnx.helper
    graph = make.make_graph(
        nodes,
        "g",
        [make.make_tensor_value_info(k, *v) for k, v in inputs.items()],
        [make.make_tensor_value_info("output", *output)],
        [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items()],
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return str(path)


def node(kind: str, inputs: str, output: str, **more: Any) -> Any:
    return onnx.helper.make_node(kind, inputs.split(), [output], **more)


@pytest.fixture
def lama(tmp_path: Path) -> str:
    """Like LaMa's export, at 24x24: known pixels stay, the hole becomes 0.2, all times 255."""
    return save(
        tmp_path / "lama.onnx",
        [
            node("Sub", "one mask", "known"),
            node("Mul", "image known", "kept"),
            node("Mul", "mask fill", "filled"),
            node("Add", "kept filled", "sum"),
            node("Mul", "sum white", "output"),
        ],
        {"image": (FLOAT, ["n", 3, 24, 24]), "mask": (FLOAT, ["n", 1, 24, 24])},
        (FLOAT, ["n", 3, 24, 24]),
        {"one": np.float32(1), "fill": np.float32(0.2), "white": np.float32(255)},
    )


@pytest.fixture
def migan(tmp_path: Path) -> str:
    """Like MI-GAN's exports: bytes of any size, 255 = known; shows the mask in the hole's place."""
    return save(
        tmp_path / "migan.onnx",
        [
            node("Concat", "mask mask mask", "three", axis=1),
            node("Sub", "white three", "inverse"),
            node("Min", "image inverse", "dark"),
            node("Sub", "inverse dark", "output"),
        ],
        {"image": (BYTES, ANY), "mask": (BYTES, ["n", 1, "h", "w"])},
        (BYTES, ANY),
        {"white": np.uint8(255)},
    )


def case(height: int = 24, width: int = 24) -> tuple[U8, U8]:
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    mask = np.zeros((height, width), np.uint8)
    mask[4:10, 6:12] = 1
    return image, mask


def test_lama_at_its_own_size(lama: str) -> None:
    image, mask = case()
    out = Adapted(lama, ADAPTERS["lama"], 1)(image, mask)
    assert np.array_equal(out[mask == 0], image[mask == 0])
    assert (out[mask > 0] == 51).all()


@pytest.mark.parametrize(("height", "width"), [(48, 40), (16, 20)])
def test_lama_at_another_size_is_resized_and_composited(lama: str, height: int, width: int) -> None:
    image, mask = case(height, width)
    out = Adapted(lama, ADAPTERS["lama"], 1)(image, mask)
    assert out.shape == image.shape
    assert np.array_equal(out[mask == 0], image[mask == 0])
    assert np.abs(out[6:8, 8:10].astype(int) - 51).max() < 40  # the middle of the hole


def test_migan_takes_bytes_and_its_mask_is_white_where_all_is_known(migan: str) -> None:
    image, mask = case(20, 28)  # not a multiple of 8: the edge is repeated, and cut off again
    adapted = Adapted(migan, ADAPTERS["migan"], 1)
    out = adapted(image, mask)
    assert out.shape == image.shape
    assert np.array_equal(out[mask == 0], image[mask == 0])
    assert np.array_equal(out[mask > 0], 255 - image[mask > 0])
    assert (adapted.backend, adapted.name, len(adapted.sha256)) == ("ort", "migan", 64)


def test_one_input_of_joined_channels(tmp_path: Path) -> None:
    """As MI-GAN's plain network: mask -0.5 or 0.5, then the image in -1 to 1, 0 in the hole."""
    path = save(
        tmp_path / "net.onnx",
        [
            node("Slice", "x zero one axis", "mask"),
            node("Slice", "x one four axis", "rgb"),
            node("Concat", "mask mask mask", "three", axis=1),
            node("Add", "rgb three", "output"),
        ],
        {"x": (FLOAT, ["n", 4, "h", "w"])},
        (FLOAT, ANY),
        {"zero": [0], "one": [1], "four": [4], "axis": [1]},
    )
    spec = {"inputs": {"x": "mask+image"}, "image_range": [-1, 1], "mask_values": [0.5, -0.5]}
    spec |= {"hole_value": 0, "output_range": [-1, 1]}
    (tmp_path / "net.json").write_text(json.dumps(spec))
    image, mask = case()
    out = Adapted(path, find_adapter(str(tmp_path / "net.json")), 1)(image, mask)
    assert (out[mask > 0] == 64).all()  # -0.5 of -1 to 1, in 255ths
    assert np.array_equal(out[mask == 0], image[mask == 0])


@pytest.mark.parametrize("kind", [FLOAT, HALF])
def test_a_denoiser_has_no_mask(tmp_path: Path, kind: int) -> None:
    dtype = np.float16 if kind == HALF else np.float32
    path = save(
        tmp_path / "net.onnx",
        [node("Mul", "picture half", "output")],
        {"picture": (kind, ["n", "h", "w", 3])},
        (kind, ["n", "h", "w", 3]),
        {"half": dtype(0.5)},
    )
    adapter = Adapter({"picture": "image"}, layout="NHWC", name="net")
    assert adapter.task == "denoise"
    image, _ = case()
    out = Adapted(path, adapter, 1)(image, None)
    assert np.abs(out.astype(float) - image / 2).max() <= 1


def test_a_file_is_a_rival_in_its_task(lama: str) -> None:
    rivals = Rivals([lama], ["lama"], threads=1)
    assert rivals.subjects(scene("denoise", 32, 32)) == []
    (make,) = rivals.subjects(scene("fill", 32, 32))
    found = make()
    assert (found.labels.backend, found.labels.model, found.labels.task) == ("ort", "lama", "fill")
    assert list(found.sha256) == ["model"]
    found.call()
    rivals.close()


# What is refused.


def test_a_file_that_is_not_as_the_adapter_says(tmp_path: Path, lama: str, migan: str) -> None:
    with pytest.raises(ModelError, match="has inputs image, mask and outputs output, adapter x"):
        Adapted(lama, Adapter({"x": "image"}, name="x"))
    with pytest.raises(ModelError, match="adapter y says image, mask and other"):
        Adapted(lama, Adapter({"image": "image", "mask": "mask"}, output="other", name="y"))
    wrong = Adapter({"image": "image", "mask": "mask"}, layout="NHWC", name="z")
    with pytest.raises(ModelError, match=r"lama\.onnx: does not run as adapter z says"):
        Adapted(lama, wrong, 1)(*case())
    with pytest.raises(InputError, match="cannot be read"):
        Adapted(str(tmp_path / "no.onnx"), ADAPTERS["lama"])
    (tmp_path / "bad.onnx").write_text("hello")
    with pytest.raises(ModelError, match=r"bad\.onnx: ONNX Runtime cannot load it"):
        Adapted(str(tmp_path / "bad.onnx"), ADAPTERS["lama"])


def test_a_result_that_is_no_picture(tmp_path: Path) -> None:
    path = save(
        tmp_path / "net.onnx",
        [node("ReduceMean", "image", "output", axes=[1])],
        {"image": (FLOAT, ANY)},
        (FLOAT, ["n", 1, "h", "w"]),
    )
    with pytest.raises(ModelError, match=r"output is \(24, 24, 1\), not a picture of \(24, 24, 3"):
        Adapted(path, Adapter({"image": "image"}), 1)(case()[0], None)


def test_inputs_of_unknown_kinds(tmp_path: Path) -> None:
    for kind, shape, words in (
        (onnx.TensorProto.INT64, ANY, r"image is tensor\(int64\)"),
        (FLOAT, [3, "h", "w"], "image has 3 axes, not 4"),
    ):
        nodes = [node("Identity", "image", "output")]
        path = save(tmp_path / "net.onnx", nodes, {"image": (kind, shape)}, (kind, shape))
        with pytest.raises(ModelError, match=words):
            Adapted(path, Adapter({"image": "image"}))


def test_without_cuda_a_file_does_not_run_on_it_in_silence(lama: str) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(MissingExtraError, match="has no CUDA: pip install onnxruntime-gpu"):
        Adapted(lama, ADAPTERS["lama"], 1, "cuda")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", r"a\.json: is not JSON"),
        ("[]", r"a\.json: must be an object with `inputs`"),
        ('{"output": "y"}', "must be an object with `inputs`"),
        ('{"inputs": {"x": "image"}, "colour": 1}', "colour: not known; choose from inputs, outp"),
        ('{"inputs": {"x": "photo"}}', "inputs: .* is not of the kind"),
        ('{"inputs": {}}', "inputs: {} is not of the kind"),
        ('{"inputs": {"x": "mask"}}', "inputs: none holds the image"),
        ('{"inputs": {"x": "image"}, "layout": "HWC"}', 'layout: "HWC"'),
        ('{"inputs": {"x": "image"}, "size": [2.5, 2]}', "size"),
        ('{"inputs": {"x": "image"}, "multiple": 0}', "multiple"),
        ('{"inputs": {"x": "image"}, "image_range": [0, true]}', "image_range"),
        ('{"inputs": {"x": "image"}, "output_range": [1, 1]}', "output_range: its ends are equal"),
    ],
)
def test_adapters_that_are_wrong(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        find_adapter(str(path))


def test_an_adapter_that_is_not_there() -> None:
    with pytest.raises(InputError, match=r"adapter nope: No such file.*choose lama, migan or a"):
        find_adapter("nope")
