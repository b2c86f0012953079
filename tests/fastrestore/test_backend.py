from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastrestore.arrays import F32, U8
from fastrestore.backend import (
    Backend,
    blank_batch,
    find_model,
    open_backend,
    weights_folder,
)
from fastrestore.degrade import add_noise, make_mask, punch
from fastrestore.demo import sample_folder
from fastrestore.errors import InputError, MissingExtraError, ModelError
from fastrestore.images import read_picture
from fastrestore.restore import Restorer
from fastrestore.spec import KEY, read_spec

Batch = tuple[U8, U8, U8, F32]


@pytest.fixture(scope="module")
def ort() -> Iterator[Backend]:
    backend = open_backend("tiny", "ort", 1)
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def openvino() -> Iterator[Backend]:
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    backend = open_backend("tiny", "openvino", 1)
    yield backend
    backend.close()


def batch(name: str, height: int, width: int, sigma: float, seed: int = 0) -> Batch:
    """A damaged photograph with a hole, noise, and a past."""
    rng = np.random.default_rng(seed)
    picture = read_picture(sample_folder() / f"{name}.webp").rgb[100:][:height, :width]
    mask = make_mask("rects", rng, height, width, 0.15)
    frame = punch(add_noise(picture, sigma, rng), mask)
    past = np.concatenate((picture, np.full((height, width, 1), 120, np.uint8)), 2)
    return frame[None], mask[None, ..., None], past[None], np.full(1, sigma, np.float32)


def assert_alike(a: U8, b: U8) -> None:
    """Within one grey level but for 0.2 % of the values, which are no further off than three."""
    levels = np.abs(a.astype(int) - b)
    assert (levels > 1).mean() < 0.005
    assert levels.max() <= 3


# Choosing.


def test_shipped_models_are_found_by_name_and_files_by_path(tmp_path: Path) -> None:
    assert find_model("tiny") == weights_folder() / "tiny.onnx"
    other = tmp_path / "mine.onnx"
    other.write_bytes(b"x")
    assert find_model(other) == find_model(str(other)) == other


@pytest.mark.parametrize("model", ["nope", "nope.onnx", ""])
def test_absent_models_are_refused_with_the_shipped_ones(model: str) -> None:
    with pytest.raises(ModelError, match=r"no such model; shipped: .*tiny.*path of an \.onnx$"):
        open_backend(model)


def test_a_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such model"):
        find_model(tmp_path)


@pytest.mark.parametrize("name", ["", "tensorflow", "ORT"])
def test_unknown_backends_are_refused_with_the_known(name: str) -> None:
    known = "auto, ort, openvino, tensorrt, rtx, triton"
    with pytest.raises(InputError, match=rf"not known; choose one of {known}$"):
        open_backend("tiny", name)


def test_auto_is_the_backend_that_is_always_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for absent in ("openvino", "onnx", "triton"):
        monkeypatch.setitem(sys.modules, absent, None)
    backend = open_backend("tiny", "auto", 1)
    assert backend.name == "ort"
    backend.close()


@pytest.mark.parametrize("absent", ["openvino", "onnx"])
def test_a_missing_library_names_its_extra(absent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if absent == "onnx":
        pytest.importorskip("openvino", reason="the extra openvino is not installed")
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(MissingExtraError, match=rf"^{absent} is not installed: pip install") as e:
        open_backend("tiny", "openvino", 1)
    assert "fastrestore[openvino]" in str(e.value)
    assert e.value.exit_code == 4


# What runs.


@pytest.mark.parametrize("backend", ["ort", "openvino"])
def test_the_contract_of_run(backend: str, request: pytest.FixtureRequest) -> None:
    loaded: Backend = request.getfixturevalue(backend)
    assert loaded.name == backend
    assert loaded.spec == read_spec(find_model("tiny").read_bytes(), "tiny")
    m = loaded.spec.multiple
    loaded.warm_up((1, m, 2 * m))
    restored, state = loaded.run(*blank_batch((2, 2 * m, m)))
    for array, channels in ((restored, 3), (state, 4)):
        assert (array.dtype, array.shape) == (np.uint8, (2, 2 * m, m, channels))


@pytest.mark.parametrize("backend", ["ort", "openvino"])
def test_a_batch_is_its_pictures(backend: str, request: pytest.FixtureRequest) -> None:
    loaded: Backend = request.getfixturevalue(backend)
    singles = [batch("cat", 64, 80, 0), batch("bridge", 64, 80, 25, seed=1)]
    both: Any = [np.concatenate(arrays) for arrays in zip(*singles, strict=True)]
    together = loaded.run(*both)
    for i, single in enumerate(singles):
        for out, alone in zip(together, loaded.run(*single), strict=True):
            assert_alike(out[i : i + 1], alone)


@pytest.mark.parametrize("backend", ["ort", "openvino"])
def test_inputs_and_earlier_results_are_left_alone(
    backend: str, request: pytest.FixtureRequest
) -> None:
    loaded: Backend = request.getfixturevalue(backend)
    first, second = batch("cat", 64, 64, 25), batch("bridge", 64, 64, 25)
    copies = [a.copy() for a in first]
    restored, state = loaded.run(*first)
    kept = restored.copy(), state.copy()
    loaded.run(*second)
    assert all(np.array_equal(a, b) for a, b in zip(first, copies, strict=True))
    assert np.array_equal(restored, kept[0])
    assert np.array_equal(state, kept[1])


@pytest.mark.parametrize("backend", ["ort", "openvino"])
def test_any_nonzero_value_is_a_hole(backend: str, request: pytest.FixtureRequest) -> None:
    loaded: Backend = request.getfixturevalue(backend)
    frame, mask, state, sigma = batch("cat", 64, 64, 0)
    one, full = loaded.run(frame, mask, state, sigma), loaded.run(frame, mask * 255, state, sigma)
    assert all(np.array_equal(a, b) for a, b in zip(one, full, strict=True))


@pytest.mark.parametrize("sigma", [0, 3, 25, 50])
@pytest.mark.parametrize("size", [(16, 16), (96, 128), (192, 240)])
def test_ort_and_openvino_agree(
    ort: Backend, openvino: Backend, size: tuple[int, int], sigma: float
) -> None:
    given = batch("vegetables", *size, sigma)
    for _ in range(2):  # the second time with the state of the first
        ours, theirs = ort.run(*given), openvino.run(*given)
        for a, b in zip(ours, theirs, strict=True):
            assert_alike(a, b)
        given = (*given[:2], ours[1], given[3])


def test_openvinos_graph_of_its_own_agrees_with_the_shared_one(
    openvino: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shape that comes often is compiled for itself; the oldest such graph makes room."""
    from fastrestore.backends import openvino as module

    monkeypatch.setattr(module, "KEPT_SHAPES", 1)
    backend = open_backend("tiny", "openvino", 1)
    given = batch("cat", 48, 112, 10)
    outs = [backend.run(*given) for _ in range(module.REPEATS + 1)]
    backend.warm_up((1, 32, 32))
    outs += [backend.run(*given) for _ in range(module.REPEATS)]
    backend.close()
    shared = openvino.run(*given)
    for out in outs:
        for a, b in zip(out, shared, strict=True):
            assert_alike(a, b)


def test_several_threads_on_one_ort_session(ort: Backend) -> None:
    jobs = [batch("cat", 64, 48 + 16 * (i % 3), 5 * i, seed=i) for i in range(12)]
    wanted = [ort.run(*job) for job in jobs]
    found: dict[int, list[tuple[U8, U8]]] = {i: [] for i in range(len(jobs))}
    start = threading.Barrier(4)

    def work(first: int) -> None:
        start.wait()
        for i in [*range(first, len(jobs), 4)] * 3:
            found[i].append(ort.run(*jobs[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    for i, results in found.items():
        assert len(results) == 3
        assert all(np.array_equal(r, wanted[i][0]) for r, _ in results)
        assert all(np.array_equal(s, wanted[i][1]) for _, s in results)


def test_more_threads_give_the_same_picture(ort: Backend) -> None:
    given = batch("cat", 96, 96, 10)
    two = open_backend("tiny", "ort", 2)
    for a, b in zip(ort.run(*given), two.run(*given), strict=True):
        assert_alike(a, b)
    two.close()


# Models that cannot be used.


def _field(number: int, value: bytes) -> bytes:
    """One length-delimited protobuf field."""
    size, n = b"", len(value)
    while n > 127:
        size += bytes([n & 127 | 128])
        n >>= 7
    return bytes([number << 3 | 2]) + size + bytes([n]) + value


def with_spec(model: bytes, **changes: Any) -> bytes:
    """Append the shipped model's spec to the bytes of another model."""
    text = read_spec(find_model("tiny").read_bytes(), "tiny").to_json()
    for key, value in changes.items():
        assert f'"{key}": "' in text
        head, _, rest = text.partition(f'"{key}": "')
        text = f'{head}"{key}": "{value}"{rest[rest.index(chr(34)) + 1 :]}'
    return model + _field(14, _field(1, KEY.encode()) + _field(2, text.encode()))


def foreign() -> bytes:
    """A sound ONNX file that is none of ours: y = x."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", kind, [1])],
        [helper.make_tensor_value_info("y", kind, [1])],
    )
    opset = [helper.make_opsetid("", 19)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=9)
    return bytes(model.SerializeToString())


def cut(part: float) -> bytes:
    data = find_model("tiny").read_bytes()
    return data[: int(part * len(data))]


BROKEN = {
    "empty": (lambda: b"", "empty|no fastrestore spec|not an ONNX file"),
    "text": (lambda: b"hello, I am a model", "not an ONNX file"),
    "noise": (lambda: np.random.default_rng(0).bytes(4000), "not an ONNX file"),
    "a picture": (lambda: (sample_folder() / "cat.webp").read_bytes(), "not an ONNX file"),
    "first half": (lambda: cut(0.5), "not an ONNX file"),
    "last bytes missing": (lambda: cut(0.9999), "not an ONNX file"),
    "foreign": (foreign, "no fastrestore spec inside; make it with `fastrestore export`"),
    "spec alone": (lambda: with_spec(b""), "^tiny: "),
    "foreign with our spec": (lambda: with_spec(foreign()), "^tiny: "),
    "detector": (lambda: with_spec(b"", kind="detector"), "is a detector, not a restorer"),
    "external data": (lambda: with_spec(b"") + b"location", "refers to data outside the file"),
}


@pytest.mark.parametrize("backend", ["ort", "openvino"])
@pytest.mark.parametrize("kind", BROKEN)
def test_broken_and_foreign_models_are_one_line(
    backend: str, kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino", reason="the extra openvino is not installed")
    make, words = BROKEN[kind]
    path = tmp_path / "bad.onnx"
    path.write_bytes(make())
    with pytest.raises(ModelError, match=words) as e:
        open_backend(path, backend, 1)
    assert "\n" not in str(e.value)
    assert len(str(e.value)) < 400
    assert e.value.exit_code == 4
    assert capfd.readouterr() == ("", "")  # the libraries' own logs stay quiet


@pytest.mark.parametrize("backend", ["ort", "openvino"])
def test_damaged_weights_are_one_line(
    backend: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    if backend == "openvino":
        pytest.importorskip("openvino", reason="the extra openvino is not installed")
    model = onnx.load_model_from_string(find_model("tiny").read_bytes())
    largest = max(model.graph.initializer, key=lambda t: len(t.raw_data))
    largest.raw_data = largest.raw_data[:8]
    path = tmp_path / "bad.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"cannot load it \(") as e:
        open_backend(path, backend, 1)
    assert "\n" not in str(e.value)
    assert capfd.readouterr() == ("", "")


def test_the_restorer_passes_the_refusals_on(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"hello")
    with pytest.raises(ModelError, match=r"bad\.onnx: not an ONNX file"):
        Restorer(tmp_path / "bad.onnx", backend="ort")
    with pytest.raises(InputError, match="backend gpu: not known"):
        Restorer("tiny", backend="gpu")
