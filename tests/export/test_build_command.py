"""`build-engine`: from the command line to a pair of files, on stand-ins and on the real RTX."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result

from fastrestore.backend import find_model, weights_folder
from fastrestore.cli import cli
from fastrestore.engine_cache import build_lock, entries
from fastrestore.engine_file import DeviceRecord, EngineRecord, Verification, read_record
from fastrestore.engine_fit import rebuild
from fastrestore.errors import EngineError, InputError, OutputError
from fastrestore.export import build_command, build_host, engine_build, forms, gate
from fastrestore.export.build_command import read_sizes
from fastrestore.export.build_host import Host, look
from fastrestore.export.gate import Verdict
from fastrestore.export.quantize import Loss
from fastrestore.export.timings import read_timings
from fastrestore.export.toolkit import Toolkit, installed
from fastrestore.locking import lock

GB = 1 << 30
ROOT = Path(__file__).resolve().parents[2]
needs_rtx = pytest.mark.skipif(
    "tensorrt_rtx" not in installed(),
    reason="tensorrt_rtx is not installed: pip install tensorrt-rtx-cu12 (x86_64 Linux, Windows)",
)


class Cuda:
    """One L4 with 10 GB free."""

    device_at = staticmethod(
        lambda index: SimpleNamespace(name="NVIDIA L4", sm="8.9", index=index, is_integrated=False)
    )
    Cuda = property(lambda self: lambda index: self)

    def __init__(self) -> None:
        self.threads: list[str] = []

    @contextmanager
    def active(self) -> Any:
        self.threads.append(threading.current_thread().name)
        yield

    def free_bytes(self) -> int:
        return 10 * GB

    def close(self) -> None:
        pass


class Bench:
    """What engines of each kind measure on the stand-in device."""

    def __init__(self) -> None:
        self.ms = {"fp16": 4.0, "int8": 3.0, "bf16": 5.0, "fp32": 8.0}
        self.faults: dict[str, tuple[str, ...]] = {}
        self.loss = Loss(0.01, 0.02)
        self.opened: list[Path] = []


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FASTRESTORE_CACHE", str(tmp_path / "cache"))
    # peaks inside the shipped models are measured in their own tests; here they cost a second
    monkeypatch.setattr(forms.Source, "check_half", lambda self: None)
    return tmp_path / "cache"


@pytest.fixture
def bench(fake_trt: Any, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Let TensorRT 10.3 and an L4 be here."""
    found, cuda = Bench(), Cuda()
    monkeypatch.setattr(build_host, "_cuda", lambda: cuda)
    kit = Toolkit("tensorrt", fake_trt, "10.3.0")
    monkeypatch.setattr(build_command, "open_toolkit", lambda product: kit)

    def compare(record: EngineRecord, reference: Any, candidate: Any) -> Verdict:
        ms = found.ms[record.precision]
        v = Verification(55.0, 1.0, 0, ms, 19, "ort")
        return Verdict(v, found.faults.get(record.precision, ()))

    def open_engine(path: Path, spec: Any, device: int = 0) -> Any:
        found.opened.append(path)
        assert read_record(path).engine_bytes == path.stat().st_size
        return SimpleNamespace(close=lambda: None)

    monkeypatch.setattr(gate, "compare", compare)
    monkeypatch.setattr(gate, "open_engine", open_engine)
    monkeypatch.setattr(gate, "loss", lambda *_: found.loss)
    return found


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["build-engine", *arguments])


def made(*arguments: str) -> EngineRecord:
    """Build one engine and return its sidecar."""
    result = run(*arguments, "--json")
    assert result.exit_code == 0, (result.output, result.exception)
    (engine,) = json.loads(result.stdout)["engines"]
    return read_record(engine["path"])


@pytest.fixture
def with_int8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model with its INT8 file beside it."""
    import onnx

    from fastrestore.export.quantize import calibration_inputs, quantize

    path = tmp_path / "mine.onnx"
    shutil.copy(find_model("nano"), path)
    model = onnx.load(path)
    pictures = [np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)]
    inputs = calibration_inputs(pictures, 2, 0, model=model)
    onnx.save(quantize(model, inputs), tmp_path / "mine.int8.onnx")
    write_report(path)
    return str(path)


def write_report(model: Path) -> Path:
    """Write what ships beside an INT8 file: of which weights it is."""
    report = model.with_suffix(".int8.json")
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    report.write_text(json.dumps({"fp32_sha256": digest}))
    return report


# sizes


def test_names_are_rounded_up_and_come_once() -> None:
    assert read_sizes(("1080p", "720p", "1910x1075", "64x64"), None, 2, 16) == [
        ((2, 1088, 1920),) * 3,
        ((2, 720, 1280),) * 3,
        ((2, 64, 64),) * 3,
    ]


def test_720p_is_the_default() -> None:
    assert read_sizes((), None, 1, 16) == [((1, 720, 1280),) * 3]


def test_dynamic_is_one_engine() -> None:
    sizes = read_sizes((), ("64x64", "1280x720", "1920x1088"), 4, 16)
    assert sizes == [((1, 64, 64), (4, 720, 1280), (4, 1088, 1920))]


@pytest.mark.parametrize(
    ("names", "dynamic", "told"),
    [
        (("big",), None, "is not 720p, 1080p or WxH such as 1280x720"),
        (("9000x64",), None, "each side must be 16 to 8192 px"),
        (("720p",), ("64x64",) * 3, "give one of them"),
        ((), ("48x64", "64x64", "64x64"), "each side must be 64"),
        ((), ("64x64", "1280x720", "1920x1080"), "multiples of 16 px; use 1920x1088"),
        ((), ("640x640", "64x64", "1280x1280"), "give MIN OPT MAX, from small to large"),
    ],
)
def test_sizes_that_cannot_be(names: Any, dynamic: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        read_sizes(names, dynamic, 1, 16)


# on the stand-in


def test_a_verified_engine_and_its_sidecar(bench: Bench, fake_trt: Any, cache: Path) -> None:
    record = made("nano", "--precision", "fp16", "--for", "1080p", "--opt-level", "2")
    assert record.device == DeviceRecord("NVIDIA L4", "8.9")
    assert record.product_version == "10.3.0"
    assert record.profile["frame"] == ((1, 1080, 1920, 3),) * 3
    assert record.verification == Verification(55.0, 1.0, 0, 4.0, 19, "ort")
    assert (record.opt_level, record.reasons, record.is_static) == (2, (), True)
    assert record.model.name == "nano"
    # verified before it was where it could be used; nothing else is left
    assert not bench.opened[0].exists()
    assert [p.name for p in (cache / "engines").iterdir() if p.name.startswith(".")] == []
    assert len(entries()) == 1
    assert fake_trt.configs[0].pools == {"workspace": 5 * GB}
    assert read_timings(next((cache / "timing").iterdir())).data == b"device+new"
    assert record.flags == ("STRONGLY_TYPED",)


def test_workspace_is_capped_at_half_of_what_is_free(bench: Bench, fake_trt: Any) -> None:
    result = run("nano", "--precision", "fp16", "--workspace", "9000", "--timing-cache", "off")
    assert "9000 MB is more than half of what is free, 5120 MB set" in result.stderr
    assert fake_trt.configs[0].pools == {"workspace": 5 * GB}
    assert fake_trt.configs[0].cache is None


def test_what_is_there_is_not_built_again(bench: Bench, fake_trt: Any) -> None:
    made("nano", "--precision", "fp16")
    result = run("nano", "--precision", "fp16")
    assert "is there already" in result.stderr
    assert fake_trt.n_built == 1
    made("nano", "--precision", "fp16", "--rebuild")
    assert fake_trt.n_built == 2


@pytest.mark.parametrize(
    "other", [("--for", "64x64"), ("--batch", "2"), ("--opt-level", "1"), ("--precision", "fp32")]
)
def test_another_engine_is_another_file(bench: Bench, other: tuple[str, ...]) -> None:
    made("nano", "--precision", "fp16")
    made("nano", *(("--precision", "fp16") if other[0] != "--precision" else ()), *other)
    assert len(entries()) == 2


def test_a_refused_engine_is_not_written_and_the_old_one_stays(bench: Bench) -> None:
    old = made("nano", "--precision", "fp16")
    bench.faults["fp16"] = ("white: 3 samples are black",)
    result = run("nano", "--precision", "fp16", "--rebuild")
    assert isinstance(result.exception, EngineError)
    assert str(result.exception).startswith("nano fp16 1x720x1280: refused, white: 3 samples")
    assert "--backend ort" in str(result.exception)
    (entry,) = entries()
    assert entry.record == old


def test_auto_keeps_the_fastest_within_the_gates(bench: Bench, with_int8: str) -> None:
    record = made(with_int8, "--for", "64x64")
    assert record.precision == "int8"
    assert record.reasons == (
        "auto: fp16 4.000 ms: slower",
        "auto: int8 3.000 ms, loses 0.010 and 0.020 dB: kept, the fastest",
    )
    assert len(entries()) == 1
    assert "is there already" in run(with_int8, "--for", "64x64").stderr


def test_auto_falls_back_where_int8_is_refused(bench: Bench, with_int8: str) -> None:
    bench.faults["int8"] = ("sigma 25: 20.0 dB from FP32",)
    record = made(with_int8, "--for", "64x64")
    assert record.precision == "fp16"
    assert "int8: mine" not in record.reasons[1]
    assert "refused, sigma 25: 20.0 dB" in record.reasons[1]


def test_auto_measures_again_what_was_built_without_choice(bench: Bench, with_int8: str) -> None:
    made(with_int8, "--for", "64x64", "--precision", "fp16")
    assert made(with_int8, "--for", "64x64").precision == "int8"


def alone(folder: Path) -> str:
    """A model without its INT8 file."""
    return str(shutil.copy(find_model("nano"), folder / "alone.onnx"))


def test_auto_without_an_int8_file_says_so(bench: Bench, tmp_path: Path) -> None:
    record = made(alone(tmp_path))
    assert record.precision == "fp16"
    assert record.reasons == ("auto: int8: not tried, there is no INT8 file and no --calibration",)


def test_auto_takes_bf16_where_fp16_overflows(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastrestore.errors import ModelError

    def check(self: Any) -> None:
        raise ModelError("model: middle.2.conv3 reaches 70000, FP16 ends at 65504; build with ...")

    monkeypatch.setattr(forms.Source, "check_half", check)
    record = made("nano")
    assert record.precision == "bf16"
    assert any("middle.2.conv3 reaches 70000" in r for r in record.reasons)
    assert "is there already" in run("nano").stderr
    result = run("nano", "--precision", "fp16", "--rebuild")
    assert isinstance(result.exception, ModelError)


def test_a_second_process_waits_and_takes_the_result(bench: Bench, fake_trt: Any) -> None:
    """Another holds the lock; when it lets go, the engine is there."""
    output = Path(os.environ["FASTRESTORE_CACHE"]) / "a.engine"
    arguments = ("nano", "--precision", "fp16", "-o", str(output), "--rebuild")
    made(*arguments)
    waiting, seen = threading.Event(), list[Result]()
    with lock(build_lock(output)):
        worker = threading.Thread(target=lambda: seen.append(run(*arguments)))
        worker.start()
        waiting.wait(0.3)
        assert worker.is_alive()
    worker.join(5)
    assert "another process builds it; waiting" in seen[0].stderr
    assert "is there already" in seen[0].stderr
    assert fake_trt.n_built == 1


def test_an_output_of_something_else_is_replaced(bench: Bench, tmp_path: Path) -> None:
    output = tmp_path / "my.engine"
    made("nano", "--precision", "fp16", "-o", str(output))
    assert made("nano", "--precision", "fp32", "-o", str(output)).precision == "fp32"
    result = run("nano", "--for", "64x64", "--for", "128x64", "-o", str(output))
    assert "-o names one engine, --for asks for 2" in str(result.exception)


@pytest.mark.parametrize("option", ["-o", "--calibration", "--timing-cache"])
def test_an_empty_name_is_none(bench: Bench, fake_trt: Any, option: str) -> None:
    result = run("nano", "--precision", "fp16", option, "")
    assert str(result.exception) == f"{option}: is empty; give a name, or leave it out"
    assert fake_trt.n_built == 0


@pytest.mark.parametrize("other", ["engine", "engine.json", "engine.old"])
def test_what_is_no_engine_is_never_replaced(
    bench: Bench, fake_trt: Any, tmp_path: Path, other: str
) -> None:
    output, mine = tmp_path / "a.engine", tmp_path / f"a.{other}"
    mine.write_text('{"mine": 1}')
    result = run("nano", "--precision", "fp16", "-o", str(output), "--rebuild")
    assert str(result.exception) == f"{mine}: exists and is no engine; choose another -o"
    assert isinstance(result.exception, OutputError)
    assert mine.read_text() == '{"mine": 1}'
    assert [p.name for p in tmp_path.glob("*a.engine*")] == [mine.name]
    mine.unlink()
    mine.mkdir()
    assert "exists and is no engine" in str(run("nano", "-o", str(output)).exception)
    assert fake_trt.n_built == 0


def test_the_model_itself_is_never_replaced(bench: Bench, tmp_path: Path) -> None:
    file = Path(alone(tmp_path))
    before = file.read_bytes()
    result = run(str(file), "-o", str(tmp_path / "." / file.name))
    assert str(result.exception) == f"{file}: is the model itself; choose another -o"
    assert file.read_bytes() == before
    named = file.rename(tmp_path / "a.engine.json")
    result = run(str(named), "-o", str(tmp_path / "a.engine"))
    assert "a.engine.json: is the model itself" in str(result.exception)
    assert "not its .json" in str(run("nano", "-o", str(named)).exception)
    assert named.read_bytes() == before


def test_a_photo_is_no_timing_cache(bench: Bench, fake_trt: Any, tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(b"my photo")
    result = run("nano", "--precision", "fp16", "--timing-cache", str(photo))
    assert isinstance(result.exception, OutputError)
    assert str(result.exception).startswith(f"{photo}: is no timing cache of fastrestore")
    assert (photo.read_bytes(), fake_trt.n_built) == (b"my photo", 0)
    mine = tmp_path / "mine.cache"
    made("nano", "--precision", "fp16", "--timing-cache", str(mine))
    assert read_timings(mine).data == b"device+new"


@pytest.mark.skipif(os.name != "posix", reason="has no such files")
def test_devices_pipes_and_links_are_never_replaced(bench: Bench, tmp_path: Path) -> None:
    pipe, link, lost = tmp_path / "pipe", tmp_path / "link", tmp_path / "lost"
    os.mkfifo(pipe)
    output = tmp_path / "a.engine"
    made("nano", "--precision", "fp16", "-o", str(output))
    link.symlink_to(output)
    lost.symlink_to(tmp_path / "nothing")
    for path in (pipe, Path("/dev/null"), link, lost):
        result = run("nano", "--precision", "fp16", "-o", str(path))
        assert str(result.exception) == f"{path}: exists and is no engine; choose another -o"
    output.unlink()
    os.mkfifo(output)  # its sidecar is ours
    assert "exists and is no engine" in str(run("nano", "-o", str(output)).exception)


def test_a_folder_that_cannot_be_written_is_said_before_the_build(
    bench: Bench, fake_trt: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("nano", "--precision", "fp16", "--for", "64x64", "--timing-cache", "off")
    made(*arguments)
    real = os.access
    closed = cache / "engines"
    monkeypatch.setattr(os, "access", lambda p, mode: p != closed and real(p, mode))
    monkeypatch.setattr(engine_build, "lock", lambda *_: pytest.fail("needs no lock"))
    assert "is there already" in run(*arguments).stderr
    result = run(*arguments, "--rebuild")
    assert isinstance(result.exception, OutputError)
    told = f"{closed}: cannot be written; set FASTRESTORE_CACHE to another"
    assert str(result.exception) == told
    result = run(*arguments, "-o", str(closed / "x.engine"))
    assert str(result.exception) == told
    closed = cache.parent
    result = run(*arguments, "-o", str(closed / "x.engine"))
    assert str(result.exception) == f"{closed}: cannot be written; choose another -o"
    assert fake_trt.n_built == 1


@pytest.mark.skipif(os.name != "posix", reason="has no such modes")
def test_a_folder_that_others_may_write_is_said(bench: Bench, tmp_path: Path) -> None:
    folder = tmp_path / "common"
    folder.mkdir()
    arguments = ("nano", "--precision", "fp16", "--for", "64x64", "-o", str(folder / "x.engine"))
    assert "others may write" not in run(*arguments).stderr
    folder.chmod(0o777)
    told = f"{folder}: others may write to it; `chmod go-w {folder}`, or if you trust it, add "
    assert f"{told}--trust-engine when it is run\n" in run(*arguments, "--rebuild").stderr


def test_a_broken_engine_of_ours_is_built_again(bench: Bench, tmp_path: Path) -> None:
    output = tmp_path / "a.engine"
    arguments = ("nano", "--precision", "fp16", "-o", str(output))
    made(*arguments)
    output.unlink()  # its sidecar is left
    made(*arguments)
    for cut in (b"vtrt, cut short", b""):
        output.write_bytes(cut)
        made(*arguments)
    output.write_bytes(b"notes")
    assert "a.engine: exists and is no engine" in str(run(*arguments).exception)


def test_another_opt_level_is_another_engine_under_the_same_name(
    bench: Bench, fake_trt: Any, tmp_path: Path
) -> None:
    arguments = ("nano", "--precision", "fp16", "-o", str(tmp_path / "a.engine"), "--opt-level")
    assert made(*arguments, "2").opt_level == 2
    assert made(*arguments, "1").opt_level == 1
    assert "is there already" in run(*arguments, "1").stderr
    assert fake_trt.n_built == 2


def test_another_workspace_is_another_engine(bench: Bench, fake_trt: Any, tmp_path: Path) -> None:
    base = ("nano", "--precision", "fp16", "--for", "64x64")
    for output in ((), ("-o", str(tmp_path / "a.engine"))):
        n = fake_trt.n_built
        for wanted in (None, 100, 200, 9000):
            words = [*base, *output, *([] if wanted is None else ["--workspace", str(wanted)])]
            record = made(*words)
            assert record.workspace_mb == wanted
            assert ("--workspace" in rebuild(record)) == (wanted is not None)
            assert "is there already" in run(*words).stderr
        assert fake_trt.n_built == n + 4
    assert fake_trt.configs[-1].pools == {"workspace": 5 * GB}


def test_an_engine_of_a_lowered_opt_level_is_there_already(
    bench: Bench, fake_trt: Any, tmp_path: Path
) -> None:
    """The level asked for was tried and gave none: it is not tried each time."""
    fake_trt.plans = [None, *fake_trt.plans]
    fake_trt.errors = ["Could not find any implementation for node {x}"]
    arguments = ("nano", "--precision", "fp16", "-o", str(tmp_path / "a.engine"), "--opt-level")
    record = made(*arguments, "5")
    assert record.opt_level == 3
    assert record.reasons == ("opt level 5: a layer found no kernel, built with 3",)
    n = fake_trt.n_built
    assert "is there already" in run(*arguments, "5").stderr
    assert fake_trt.n_built == n


def test_int8_without_a_file_says_what_to_do(bench: Bench, tmp_path: Path) -> None:
    result = run(alone(tmp_path), "--precision", "int8")
    assert "has no alone.int8.onnx beside it; add --calibration DIR" in str(result.exception)


def test_an_int8_file_of_another_model_is_refused(bench: Bench, with_int8: str) -> None:
    Path(with_int8).write_bytes(find_model("tiny").read_bytes())
    result = run(with_int8, "--precision", "int8")
    assert "is nano version 1, the model is tiny version 2" in str(result.exception)


def test_an_int8_file_of_other_weights_is_refused(
    bench: Bench, fake_trt: Any, with_int8: str
) -> None:
    """Name, version and preset agree; only the digest tells."""
    report = Path(with_int8).with_suffix(".int8.json")
    report.write_text(json.dumps({"fp32_sha256": "0" * 64}))
    result = run(with_int8, "--precision", "int8")
    told = "mine.int8.onnx: was made from other weights than mine.onnx; add --calibration DIR"
    assert str(result.exception).endswith(told)
    assert fake_trt.n_built == 0
    record = made(with_int8, "--for", "64x64")
    assert record.precision == "fp16"
    assert record.reasons[0].endswith(told)
    for text in ("{}", "[" * 100_000, None):
        report.unlink() if text is None else report.write_text(text)
        result = run(with_int8, "--precision", "int8")
        assert "does not say of which weights the INT8 file is; add --cal" in str(result.exception)


def test_an_int8_file_that_was_replaced_is_refused(bench: Bench, with_int8: str) -> None:
    report = write_report(Path(with_int8))
    said = json.loads(report.read_text())
    report.write_text(json.dumps({**said, "int8_sha256": "0" * 64}))
    result = run(with_int8, "--precision", "int8")
    assert "was made from other weights" in str(result.exception)


def test_shipped_int8_files_are_of_the_shipped_models() -> None:
    names = [p.name.removesuffix(".int8.onnx") for p in weights_folder().glob("*.int8.onnx")]
    assert {n: forms.Source(n).no_int8 for n in names} == dict.fromkeys(names, "")
    assert names


def test_another_int8_file_makes_another_engine(
    bench: Bench, fake_trt: Any, with_int8: str, tmp_path: Path
) -> None:
    import onnx

    file = Path(with_int8).with_suffix(".int8.onnx")
    arguments = (with_int8, "--precision", "int8", "--for", "64x64")
    output = ("-o", str(tmp_path / "a.engine"))
    records = [made(*arguments), made(*arguments, *output)]
    assert {r.int8_sha256 for r in records} == {hashlib.sha256(file.read_bytes()).hexdigest()}
    assert {r.calibration for r in records} == {None}
    assert "is there already" in run(*arguments, *output).stderr
    model = onnx.load(file)
    scale = next(t for t in model.graph.initializer if "scale" in t.name)
    array = onnx.numpy_helper.to_array(scale)
    scale.CopyFrom(onnx.numpy_helper.from_array(array * np.float32(2), scale.name))
    onnx.save(model, file)
    n = fake_trt.n_built
    for more in ((), output):
        record = made(*arguments, *more)
        assert record.int8_sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert fake_trt.n_built == n + 2
    assert len(entries()) == 2
    assert made(with_int8, "--precision", "fp16").int8_sha256 is None


def test_own_calibration_makes_another_engine(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forms, "CROPS", 2)
    rng = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(forms.CALIBRATION_LEAST - 1):
        cv2.imwrite(str(folder / f"{i}.png"), rng.integers(0, 256, (64, 64, 3), np.uint8))
    arguments = ("nano", "--precision", "int8", "--for", "64x64", "--calibration", str(folder))
    assert "has 7 pictures, calibration needs 8" in str(run(*arguments).exception)
    cv2.imwrite(str(folder / "9.png"), rng.integers(0, 256, (64, 64, 3), np.uint8))
    record = made(*arguments)
    assert record.precision == "int8"
    assert record.int8_sha256 is not None
    assert record.calibration == str(folder)
    assert "is there already" in run(*arguments).stderr
    mend = f"--precision int8 --for 64x64 --calibration {folder}`"
    assert mend in rebuild(record)
    moved = folder.rename(tmp_path / "the same")
    assert "is there already" in run(*arguments[:-1], str(moved)).stderr
    cv2.imwrite(str(moved / "0.png"), np.zeros((64, 64, 3), np.uint8))
    assert made(*arguments[:-1], str(moved)).int8_sha256 != record.int8_sha256
    assert len(entries()) == 2


def test_an_int8_file_is_int8_and_nothing_else(
    bench: Bench, with_int8: str, tmp_path: Path
) -> None:
    file = with_int8.replace(".onnx", ".int8.onnx")
    assert made(file, "--for", "64x64").precision == "int8"
    for precision in ("fp16", "bf16", "fp32"):
        assert "is INT8 already" in str(run(file, "--precision", precision).exception)
    result = run(file, "--calibration", str(tmp_path))
    assert "is INT8 already; leave --calibration out" in str(result.exception)


def test_a_form_for_cpus_is_refused(bench: Bench, with_int8: str, tmp_path: Path) -> None:
    import onnx

    from fastrestore.export.u8 import to_u8

    model = onnx.load(with_int8.replace(".onnx", ".int8.onnx"))
    file = tmp_path / "mine-u8.onnx"
    onnx.save(to_u8(model), file)
    for options in ((), ("--precision", "fp32"), ("--calibration", str(tmp_path))):
        result = run(str(file), *options)
        assert str(result.exception) == f"{file}: is made for CPUs; build from {with_int8}"
    del model.metadata_props[1:]  # without our record it could be of any form
    assert model.metadata_props[0].key == "fastrestore.spec"
    onnx.save(model, tmp_path / "odd.onnx")
    result = run(str(tmp_path / "odd.onnx"))
    assert "odd.onnx: is made for CPUs; build from its FP32 file" in str(result.exception)


def test_a_shipped_form_for_cpus_names_the_model_to_take(bench: Bench) -> None:
    assert str(run("tiny-u8").exception).endswith("is made for CPUs; build from tiny")


@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16", "fp16", "int8"])
def test_weights_that_are_no_numbers_are_refused(
    bench: Bench, fake_trt: Any, tmp_path: Path, precision: str
) -> None:
    import onnx
    from onnx import numpy_helper

    model = onnx.load(find_model("nano"))
    tensor = next(t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
    array = numpy_helper.to_array(tensor).copy()
    array.flat[-1] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    file = tmp_path / "odd.onnx"
    onnx.save(model, file)
    result = run(str(file), "--precision", precision)
    told = f"{file}: has values that are no numbers; export it again"
    assert str(result.exception) == told
    assert fake_trt.n_built == 0


def test_plugins_need_a_newer_version(bench: Bench) -> None:
    record = made("nano", "--plugins", "auto", "--for", "64x64")
    assert any("TensorRT 10.3.0 is older than 10.9" in r for r in record.reasons)
    result = run("nano", "--precision", "fp16", "--plugins", "on")
    assert "older than 10.9" in str(result.exception)


def test_a_workspace_that_no_gpu_has_is_refused(bench: Bench) -> None:
    result = run("nano", "--workspace", "99999999999999999999")
    assert (result.exit_code, type(result.exception)) == (2, SystemExit)
    assert "is not in the range 1<=x<=1048576" in result.stderr


def test_what_goes_with_rtx_alone(bench: Bench) -> None:
    for option in (("--windows",), ("--compute-capability", "8.9")):
        assert "go with --target rtx alone" in str(run("nano", *option).exception)


def test_a_failing_build_leaves_nothing(bench: Bench, fake_trt: Any, cache: Path) -> None:
    fake_trt.plans, fake_trt.errors = [None], ["out of memory"]
    result = run("nano", "--precision", "fp16")
    assert str(result.exception).startswith("nano fp16 1x720x1280: the device's memory was used up")
    assert list((cache / "engines").iterdir()) == []


# the machine


def test_without_a_device_tensorrt_cannot_build(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(index: int) -> Any:
        raise EngineError("no driver; install it")

    monkeypatch.setattr(build_host, "_cuda", lambda: SimpleNamespace(device_at=none))
    with pytest.raises(EngineError, match="no driver"):
        look(None, is_needed=True)
    with pytest.raises(EngineError, match="no driver"):
        look(1, is_needed=False)
    assert look(None, is_needed=False) == Host(None, "no driver; install it")


def test_integrated_devices_are_capped_by_the_systems_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(build_host, "memory_mb", lambda: {"available": 3000})
    host = Host(DeviceRecord("Orin", "8.7"), is_integrated=True)
    assert host.workspace_bytes(None, print) == 1500 << 20
    assert host.workspace_bytes(100, print) == 100 << 20


def test_rtx_builds_without_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(index: int) -> Any:
        raise EngineError("no driver")

    monkeypatch.setattr(build_host, "_cuda", lambda: SimpleNamespace(device_at=none))
    result = run("nano", "--target", "rtx", "--for", "60x60", "--json")
    assert result.exit_code == 0, result.exception
    (engine,) = json.loads(result.stdout)["engines"]
    record = read_record(engine["path"])
    assert (record.product, record.precision) == ("tensorrt_rtx", "fp16")
    assert (record.device, record.compute_capabilities) == (None, ("8.0+",))
    assert record.profile["frame"] == ((1, 64, 64, 3),) * 3
    assert record.verification is None
    assert record.reasons == (
        "auto: fp16: nothing can be measured here, no device here (no driver)",
        "unverified: no device here (no driver)",
    )
    told = result.stderr.splitlines()
    assert next(line.split(" ")[-1] for line in told if "Building engine" in line) == "1/6"
    assert told[-1].endswith("unverified: no device here (no driver)")


@needs_rtx
def test_rtx_refuses_a_gpu_that_it_does_not_know() -> None:
    result = run("nano", "--target", "rtx", "--compute-capability", "sm_87")
    assert "compute capability 8.7: TensorRT-RTX" in str(result.exception)
    result = run("nano", "--target", "rtx", "--compute-capability", "new")
    assert "write it as 8.9, or current" in str(result.exception)


@needs_rtx
def test_compute_capabilities_are_one_set_in_any_order() -> None:
    sets = (("8.9", "7.5"), ("sm_75", "89", "8.9"))
    words = [[w for c in s for w in ("--compute-capability", c)] for s in sets]
    base = ("nano", "--target", "rtx", "--precision", "fp16", "--for", "64x64")
    assert made(*base, *words[0]).compute_capabilities == ("7.5", "8.9")
    assert "is there already" in run(*base, *words[1]).stderr


@needs_rtx
def test_ctrl_c_ends_it_within_two_seconds_and_leaves_nothing(cache: Path) -> None:
    """A real signal to a real build of the dynamic engine, the longest that there is."""
    code = "from fastrestore.cli import main; main()"
    sizes = ("64x64", "1280x720", "1920x1088")
    words = ["build-engine", "nano", "--target", "rtx", "--precision", "fp32", "--dynamic", *sizes]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "Building engine 3/6" in line:  # where the longest single step comes
            break
    process.send_signal(signal.SIGINT)
    start = time.monotonic()
    rest = process.stderr.read()
    code_seen = process.wait(10)
    taken = time.monotonic() - start
    process.stderr.close()
    assert code_seen == 130, rest
    assert "fastrestore: interrupted" in rest
    assert "Traceback" not in rest
    assert taken < 2
    assert list((cache / "engines").iterdir()) == []
