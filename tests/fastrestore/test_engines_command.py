"""`fastrestore engines`: list, verify, show, prune; and what it says of the machine at hand."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from fastrestore import cli, engine_here
from fastrestore.backend import weights_folder
from fastrestore.engine_cache import engine_path
from fastrestore.engine_file import (
    DeviceRecord,
    EngineRecord,
    ModelRecord,
    PluginRecord,
    Verification,
    read_record,
    sidecar,
    write_engine,
)
from fastrestore.engine_record import system
from fastrestore.errors import EngineError, MissingExtraError
from fastrestore.spec import read_spec

ORIN, L4 = DeviceRecord("Orin", "8.7"), DeviceRecord("L4", "8.9")
RECORD = EngineRecord(
    product="tensorrt",
    product_version="10.3.0",
    os=system()[0],
    arch=system()[1],
    model=ModelRecord("own", 2, "a" * 64, "free", "CC0-1.0"),
    precision="fp16",
    profile={"frame": ((1, 736, 1280, 3),) * 3},
    opt_level=3,
    build_seconds=81.5,
    code_version="0.1.0",
    device=ORIN,
    plugins={"ResidualBlockD1": PluginRecord("b" * 64, "3.2.0")},
    verification=Verification(58.0, 2.0, 0, 4.5, 12, "ort"),
    reasons=("fp16 4.5 ms", "fp32 9.1 ms"),
)
RTX: dict[str, Any] = {
    "product": "tensorrt_rtx",
    "product_version": "1.7.1.116",
    "device": None,
    "compute_capabilities": ("7.5", "8.9"),
    "verification": None,
}
DATA = b"ftrt" + bytes(1_499_996)


class Result(NamedTuple):
    code: int
    out: str
    err: str


Call = Callable[..., Result]
Machine = Callable[..., None]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FASTRESTORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "engines"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Make this a machine with these versions and these GPUs."""

    def be(*devices: DeviceRecord | None, **versions: str) -> None:
        monkeypatch.setattr(engine_here, "product_version", versions.get)
        found = [d for d in devices if d is not None]
        monkeypatch.setattr(
            engine_here, "device", lambda index=0: dict(enumerate(found)).get(index)
        )
        monkeypatch.setattr(engine_here, "devices", lambda: found)

    be(None)
    return be


@pytest.fixture
def fr(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], machine: Machine
) -> Call:
    """Run `fastrestore engines` in this process."""

    def call(*args: str) -> Result:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["fastrestore", "engines", *args])
        with pytest.raises(SystemExit) as e:
            cli.main()
        assert isinstance(e.value.code, int)
        return Result(e.value.code, *capfd.readouterr())

    return call


def put(**changes: Any) -> Path:
    record = replace(RECORD, **changes)
    path = engine_path(record)
    write_engine(path, DATA, record)
    return path


def test_nothing_to_list(fr: Call, cache: Path) -> None:
    result = fr("list")
    assert (result.code, result.out) == (0, "")
    assert result.err.startswith(f"{cache}: no engines; `fastrestore build-engine")
    report = json.loads(fr("list", "--json").out)
    assert report == {"schema": 1, "folder": str(cache), "engines": []}


def test_list(fr: Call, machine: Machine) -> None:
    machine(ORIN, tensorrt="10.3.0")
    put(), put(**RTX), put(product_version="9.0.1", precision="int8", verification=None)
    damaged = put(precision="fp32")
    sidecar(damaged).write_text("[]")
    result = fr("list")
    assert (result.code, result.err) == (0, "")
    head, *lines = result.out.splitlines()
    assert re.split("  +", head)[-4:] == ["verified", "MB", "age", "fits here"]
    rows = {cells[0]: cells[1:] for cells in (re.split("  +", line) for line in lines)}
    assert len(rows) == 4
    by_start = {name[:8]: cells for name, cells in rows.items()}
    orin = next(c for n, c in rows.items() if "sm87-10.3.0" in n and n.startswith("own-fp16"))
    assert orin[:7] == ["own v2", "fp16", "1x736x1280", "Orin", "10.3.0", "yes", "1.5"]
    assert orin[-1] == "yes"
    rtx = next(c for n, c in rows.items() if "sm75" in n)
    assert rtx[3:6] == ["sm 7.5, 8.9", "RTX 1.7.1.116", "no"]
    assert rtx[-1] == "no: was built for compute capability 7.5, 8.9, this is Orin (8.7)"
    assert by_start["own-int8"][-1] == "no: was built by TensorRT 9.0.1, here runs 10.3.0"
    assert "is not a JSON object" in by_start["own-fp32"][-1]


def test_list_as_json(fr: Call, machine: Machine) -> None:
    machine(ORIN)
    path = put()
    (row,) = json.loads(fr("list", "--json").out)["engines"]
    assert (row["name"], row["path"], row["size_bytes"]) == (path.stem, str(path), len(DATA))
    assert (row["fits"], row["why"]) == (None, "TensorRT is not installed here")
    assert EngineRecord.from_json(json.dumps(row["record"])) == read_record(path)
    machine(None, tensorrt="10.3.0")
    (row,) = json.loads(fr("list", "--json").out)["engines"]
    assert (row["fits"], row["why"]) == (None, "no device here")
    machine(ORIN, tensorrt="10.3.0")
    (row,) = json.loads(fr("list", "--json").out)["engines"]
    assert (row["fits"], row["why"]) == (True, "")


def gate(monkeypatch: pytest.MonkeyPatch, run: Callable[..., dict[str, Any]]) -> None:
    monkeypatch.setitem(
        sys.modules,
        "fastrestore.export.gate",
        SimpleNamespace(verify_engine=run),  # type: ignore[arg-type]
    )


def test_verify_without_a_device(
    fr: Call, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate(monkeypatch, lambda *_, **__: pytest.fail("needs a device"))
    path = put()
    result = fr("verify", path.stem)
    assert (result.code, result.out) == (4, "")
    assert "unverified: no device here" in result.err
    assert len(result.err.splitlines()) == 1
    machine(None, tensorrt="10.16.1")
    assert "was built by TensorRT 10.3.0, here runs 10.16.1" in fr("verify", path.stem).err
    path.write_bytes(DATA[:-1] + b"x")
    result = fr("verify", str(path))
    assert (result.code, result.out) == (4, "")
    assert "from its .onnx: `fastrestore build-engine FILE.onnx --rebuild" in result.err


def test_verify_on_its_device(fr: Call, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(ORIN, tensorrt="10.3.0")
    path, asked = put(), []

    def run(engine: Path, model: str | None, device: int, trust: bool) -> dict[str, Any]:
        asked.append((engine, model, device, trust))
        return {"psnr": 58.0, "nan_count": 0}

    gate(monkeypatch, run)
    result = fr("verify", path.name)
    assert (result.code, result.err) == (0, "")
    assert result.out == f"{path}: verified: psnr 58.0, nan_count 0\n"
    assert json.loads(fr("verify", path.stem, "--json").out) == {"psnr": 58.0, "nan_count": 0}
    assert fr("verify", path.stem, "--trust-engine").code == 0
    assert fr("verify", path.stem, "--model", "own.onnx").code == 0
    assert [a[1:] for a in asked] == [
        (None, 0, False),
        (None, 0, False),
        (None, 0, True),
        ("own.onnx", 0, False),
    ]
    assert {a[0] for a in asked} == {path}

    def fail(engine: Path, *_: Any) -> dict[str, Any]:
        raise EngineError(f"{engine}: 3 samples are no number")

    gate(monkeypatch, fail)
    result = fr("verify", path.stem)
    assert (result.code, result.err) == (4, f"fastrestore: {path}: 3 samples are no number\n")


def test_verify_of_one_that_others_may_change(fr: Call, tmp_path: Path) -> None:
    path = tmp_path / "mine" / "x.engine"
    write_engine(path, DATA, RECORD)
    path.parent.chmod(0o777)
    assert "others may write" in fr("verify", str(path)).err
    assert "unverified: no device here" in fr("verify", str(path), "--trust-engine").err


def test_show(fr: Call, tmp_path: Path) -> None:
    path = put()
    result = fr("show", path.stem)
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    for line in (
        "product: tensorrt",
        "model.name: own",
        "device.sm: 8.7",
        "profile.frame: 1x736x1280x3, 1x736x1280x3, 1x736x1280x3",
        "plugins.ResidualBlockD1.triton: 3.2.0",
        "verification.psnr: 58.0",
        "reasons: fp16 4.5 ms",
        "reasons: fp32 9.1 ms",
        "jetpack: -",
        "flags: -",
    ):
        assert line in lines
    assert EngineRecord.from_json(fr("show", path.stem, "--json").out) == read_record(path)
    assert fr("show", f"{path}.json").out == result.out  # the sidecar's own path, too
    own = tmp_path / "own.engine"
    write_engine(own, DATA, RECORD)
    assert "product: tensorrt" in fr("show", str(own)).out


def test_show_layers(fr: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put()
    layers = ["conv1 + relu1", {"Name": "conv2"}]
    runtime: Any = SimpleNamespace(layers=lambda p, device: layers if p == path else None)
    monkeypatch.setitem(sys.modules, "fastrestore.backends.tensorrt", runtime)
    result = fr("show", path.stem, "--layers")
    assert result.out.splitlines()[-2:] == [
        "layer 0: conv1 + relu1",
        'layer 1: {"Name": "conv2"}',
    ]
    assert json.loads(fr("show", path.stem, "--layers", "--json").out)["layers"] == layers
    monkeypatch.setitem(sys.modules, "fastrestore.backends.tensorrt", None)  # type: ignore[arg-type]
    result = fr("show", path.stem, "--layers")
    assert (result.code, result.out) == (4, "")
    assert len(result.err.splitlines()) == 1


@pytest.mark.parametrize("action", ["verify", "show"])
def test_names(fr: Call, action: str, tmp_path: Path) -> None:
    a, _ = put(), put(precision="fp32")
    result = fr(action, "own-")
    assert (result.code, result.out) == (4, "")
    assert "own-: 2 engines begin so" in result.err
    assert "no such engine; `fastrestore engines list`" in fr(action, "absent").err
    assert str(a) in fr(action, "own-fp16").err or "fp16" in fr(action, "own-fp16").out
    (tmp_path / "link.engine").symlink_to(a)
    result = fr(action, str(tmp_path / "link.engine"))
    assert result.code == 4


def shipped() -> ModelRecord:
    data = (weights_folder() / "tiny.onnx").read_bytes()
    spec = read_spec(data, "tiny.onnx")
    return ModelRecord(spec.name, spec.version, sha256(data).hexdigest(), "free", "CC0-1.0")


def test_prune(fr: Call, machine: Machine, cache: Path) -> None:
    machine(ORIN, tensorrt="10.3.0")
    tiny = shipped()
    stays = [
        put(),
        put(model=tiny),
        put(os="plan9"),  # built here to be taken there
    ]
    own = put(model=replace(tiny, sha256="c" * 64))  # the shipped name, the user's own file
    stays.append(own)
    old = put(product_version="9.0.1")
    elsewhere = put(device=DeviceRecord("L4", "8.9"))
    damaged = put(opt_level=5)
    sidecar(damaged).write_text("")
    goes = [old, elsewhere, damaged]
    dry = fr("prune", "--dry-run")
    assert (dry.code, dry.out) == (0, "")
    assert len(list(cache.glob("*.engine"))) == 7
    lines = {line.split(": ")[0]: line for line in dry.err.splitlines()}
    assert set(lines) == {p.name for p in (*goes, own)} | {dry.err.splitlines()[-1]}
    assert "would be removed: was built by TensorRT 9.0.1" in lines[old.name]
    assert "this is Orin (8.7)" in lines[elsewhere.name]
    assert "kept: of another model file than the one that ships" in lines[own.name]
    assert "is not JSON" in lines[damaged.name]
    assert "3 of 7 engines, 4.5 MB would be removed" in dry.err
    done = fr("prune")
    assert (done.code, done.out) == (0, "")
    assert done.err == dry.err.replace("would be removed", "removed")
    assert set(cache.glob("*.engine")) == set(stays)
    assert "4 of 4 engines, 6.0 MB removed" in fr("prune", "--all").err
    assert list(cache.iterdir()) == []


def test_prune_goes_on_after_what_cannot_be_removed(fr: Call, cache: Path) -> None:
    put(), put(precision="fp32")
    (cache / "dir.engine").mkdir()
    (cache / ".old.part").mkdir()
    os.utime(cache / ".old.part", (1, 1))
    result = fr("prune", "--all")
    assert (result.code, result.out) == (1, "")
    *_, told, folder, part = result.err.splitlines()
    assert told.startswith("2 of 3 engines, 3.0 MB removed")
    assert folder.startswith(f"{cache / 'dir.engine'}: cannot be removed (")
    assert folder.endswith("; it is a folder, remove it yourself")
    assert part.startswith(f"{cache / '.old.part'}: cannot be removed (")
    assert {p.name for p in cache.iterdir()} == {"dir.engine", ".old.part"}


def test_what_cannot_be_told_is_kept(fr: Call, machine: Machine, cache: Path) -> None:
    put(), put(**RTX), put(product_version="9.0.1")
    assert "0 of 3 engines, 0.0 MB removed" in fr("prune").err
    machine(DeviceRecord("L4", "8.9"), tensorrt_rtx="1.7.1.116")
    assert "2 of 3 engines" in fr("prune").err  # no TensorRT here, but another GPU
    assert len(list(cache.glob("*sm75*.engine"))) == 1


def test_versions_are_read_without_importing(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"tensorrt": "10.3.0", "tensorrt-rtx-cu12-bindings": "1.7.1.116"}
    monkeypatch.setattr(engine_here, "package_version", installed.get)
    assert engine_here.product_version("tensorrt") == "10.3.0"
    assert engine_here.product_version("tensorrt_rtx") == "1.7.1.116"
    monkeypatch.setattr(engine_here, "package_version", {}.get)
    assert engine_here.product_version("tensorrt") is None


def test_the_device_is_asked_of_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: int) -> None:
        raise MissingExtraError("neither cuda-bindings nor pycuda is installed")

    def broken(*_: int) -> None:
        raise EngineError("cuda-bindings is broken; reinstall it")

    def drive(open_driver: Callable[[], Any]) -> None:
        for module in (sys.modules["fastrestore.cuda"], engine_here):
            monkeypatch.setattr(module, "open_driver", open_driver)

    two = [L4, ORIN]
    drive(lambda: SimpleNamespace(count=lambda: len(two), describe=two.__getitem__))
    assert (engine_here.device(), engine_here.device(1)) == (L4, ORIN)
    assert engine_here.devices() == [L4, ORIN]
    with pytest.raises(EngineError, match="device 2: devices 0 to 1 are visible here"):
        engine_here.device(2)
    two.clear()
    assert (engine_here.device(1), engine_here.devices()) == (None, [])
    drive(absent)
    assert (engine_here.device(), engine_here.devices()) == (None, [])
    drive(broken)
    for ask in (engine_here.device, engine_here.devices):
        with pytest.raises(EngineError, match="is broken"):
            ask()


def test_an_engine_of_a_second_gpu_is_of_use(
    fr: Call, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(L4, ORIN, tensorrt="10.3.0")
    path = put(verification=None)
    assert fr("list").out.rstrip().endswith("  yes: on device 1")
    assert "0 of 1 engines" in fr("prune").err
    asked: list[Any] = []
    gate(monkeypatch, lambda *given: asked.append(given) or {"psnr": 58.0})
    result = fr("verify", path.stem)
    assert (result.code, asked) == (4, [])
    assert "was built for Orin (8.7), this is L4 (8.9)" in result.err
    assert fr("verify", path.stem, "--device", "1").code == 0
    assert asked == [(path, None, 1, False)]
    path.write_bytes(DATA[:-1])
    machine(L4, ORIN, tensorrt="10.16.1")
    sound = put(verification=None, precision="fp32")
    result = fr("verify", sound.stem, "--device", "1")
    assert "here runs 10.16.1; build it again from its .onnx: " in result.err
    assert "--device 1`" in result.err  # the engine is to be of that GPU again
    (row, _) = json.loads(fr("list", "--json").out)["engines"]
    assert (row["fits"], row["device"]) == (False, 0)
