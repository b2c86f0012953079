"""Engines and sidecars: every mismatch is one line before anything native, and no crash matters."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastrestore import engine_file
from fastrestore._version import __version__
from fastrestore.backend import weights_folder
from fastrestore.backends.engine_load import log_of
from fastrestore.engine_file import (
    DeviceRecord,
    EngineRecord,
    Expected,
    ModelRecord,
    PluginRecord,
    Verification,
    backup,
    check_engine,
    read_record,
    sidecar,
    write_engine,
    write_record,
)
from fastrestore.engine_fit import argument, lowered, rebuild
from fastrestore.engine_record import system
from fastrestore.errors import EngineError, OutputError

ROOT = Path(__file__).resolve().parents[2]
OS, ARCH = system()
ORIN, L4 = DeviceRecord("Orin", "8.7"), DeviceRecord("NVIDIA L4", "8.9")
NEW_ORIN = DeviceRecord("Orin NX", "8.7")
MODEL = ModelRecord("tiny", 2, "a" * 64, "free", "CC0-1.0")
DATA = b"ftrt" + bytes(range(256)) * 8
RTX_DATA = b"vtrt" + bytes(12) + (2000).to_bytes(8, "little") + bytes(2000 - 24)
STILL = ((1, 736, 1280, 3),) * 3
MOVING = ((1, 64, 64, 3), (1, 736, 1280, 3), (4, 1088, 1920, 3))
RECORD = EngineRecord(
    product="tensorrt",
    product_version="10.3.0",
    os=OS,
    arch=ARCH,
    model=MODEL,
    precision="fp16",
    profile={"frame": STILL},
    opt_level=3,
    build_seconds=81.5,
    code_version="0.1.0",
    device=ORIN,
    cuda_runtime="12.6",
    driver="540.4.0",
    plugins={"ResidualBlockD1": PluginRecord("b" * 64, "3.2.0")},
    flags=("STRONGLY_TYPED",),
    jetpack="6.2",
    power_mode="MAXN",
    verification=Verification(58.25, 3.0, 0, 4.5, 12, "ort"),
    reasons=("fp16 4.5 ms, fp32 9.1 ms",),
)
RTX = replace(
    RECORD,
    product="tensorrt_rtx",
    product_version="1.7.1.116",
    device=None,
    compute_capabilities=("7.5", "8.9", "12.0"),
    verification=None,
)
SHIPPED = replace(
    RECORD,
    model=replace(
        MODEL, sha256=hashlib.sha256((weights_folder() / "tiny.onnx").read_bytes()).hexdigest()
    ),
)
HERE = Expected("tensorrt", "10.3.0", ORIN, "a" * 64, "tiny", (1, 736, 1280))
RTX_HERE = replace(HERE, product="tensorrt_rtx", version="1.7.1.116", device=L4)
ONNX = b"\x08\x0a\x12\x0bfastrestore\x1a\x050.1.0" + bytes(100)


def refusal(path: Path, expected: Expected | None = HERE, trust: bool = False) -> str:
    with pytest.raises(EngineError) as e:
        check_engine(path, expected, trust)
    assert e.value.exit_code == 4
    text = str(e.value)
    assert text.isprintable()  # one line
    assert str(path.parent) in text
    assert re.search(r"fastrestore build-engine|--trust-engine|; name |`chmod |--backend", text), (
        text
    )
    return text


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """An engine that fits HERE."""
    path = tmp_path / "engines" / "tiny.engine"
    write_engine(path, DATA, RECORD)
    return path


# The record.


def test_a_record_survives_its_file() -> None:
    for record in (
        RECORD,
        RTX,
        replace(RECORD, driver=None, jetpack=None, power_mode=None, cuda_runtime=None),
        replace(RECORD, profile={"frame": MOVING, "mask": MOVING}),
        replace(RECORD, verification=Verification(None, 0, 0, 1, 3, "ort")),
    ):
        assert EngineRecord.from_json(record.to_json()) == record
    assert (RECORD.is_static, replace(RECORD, profile={"frame": MOVING}).is_static) == (True, False)


def test_every_field_is_required_and_typed() -> None:
    usual = json.loads(RECORD.to_json())
    assert set(usual) >= {"schema", "verification", "reasons", "engine_sha256", "plugins"}
    for name in usual:
        for changed in (
            {k: v for k, v in usual.items() if k != name},
            {**usual, name: [[{}]]},
            {**usual, name: True},
        ):
            with pytest.raises(EngineError, match=name):
                EngineRecord.from_json(json.dumps(changed))
    for outer in ("model", "device", "verification"):
        for name in usual[outer]:
            for part in ({}, {name: [1]}, {name: "a\nb"}):
                inner = {k: v for k, v in usual[outer].items() if k != name} | part
                with pytest.raises(EngineError, match=rf"{outer}\.{name}"):
                    EngineRecord.from_json(json.dumps({**usual, outer: inner}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 2}, "schema 2 is not known, this version reads 1"),
        ({"schema": "1"}, "schema is missing"),
        ({"colour": 1}, "colour is not known"),
        ({"precision": "fp8"}, "precision is not one of fp32, fp16, bf16, int8"),
        ({"build_seconds": float("nan")}, "build_seconds is not a number"),
        ({"build_seconds": 10**400}, "build_seconds is not a number|is not JSON"),
        ({"opt_level": 3.0}, "opt_level is not a whole number"),
        ({"engine_sha256": "x" * 64}, "engine_sha256 is no SHA-256"),
        ({"device": None}, "device is missing: TensorRT builds for one GPU"),
        ({"compute_capabilities": ["8.7"]}, "exactly one of device and compute_capabilities"),
        ({"device": {"name": "Orin", "sm": "87"}}, "written as 8.7"),
        ({"profile": {}}, "profile is empty"),
        ({"profile": {"frame": [[1], [1]]}}, r"profile\.frame is not a list"),
        ({"profile": {"frame": [[1, 2], [1, 1], [1, 3]]}}, "profile.frame is not a smallest"),
        ({"profile": {"frame": [[1, 2], [1, 2], [1]]}}, "profile.frame is not a smallest"),
        ({"plugins": {"P": {"sha256": "b", "triton": "3"}}}, "plugins.P.sha256"),
        ({"flags": ["a\x1b[31m"]}, r"flags\[0\] is not a line of text"),
        ({"plugins": {"a\nb": {}}}, "plugins is not an object"),
        ({"driver": "9" * 20_001}, "driver is not a line of text"),
        ({"int8_sha256": "x"}, "int8_sha256 is no SHA-256"),
        ({"workspace_mb": 1.5}, "workspace_mb is not a whole number"),
    ],
)
def test_a_record_that_cannot_be_is_refused(pair: Path, change: dict[str, Any], words: str) -> None:
    sidecar(pair).write_text(json.dumps({**json.loads(sidecar(pair).read_text()), **change}))
    text = refusal(pair)
    assert text.startswith(f"{sidecar(pair)}: ")
    assert re.search(words, text), text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not JSON"),
        (b"\xff\xfe{}", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "is not a JSON object"),
        (b'{"a\nb": 1, "schema": 1}', "is not JSON"),
        (b'{"a\\nb": 1, "schema": 1}', "is not an object"),
        (b" " * 1_000_001, "1000001 bytes, no sidecar has more"),
    ],
    ids=range(7),
)
def test_a_sidecar_that_is_none_is_refused(pair: Path, content: bytes, words: str) -> None:
    sidecar(pair).write_bytes(content)
    assert words in refusal(pair)


# The drill.


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def link(path: Path) -> None:
    path.rename(path.with_name("real"))
    path.symlink_to(path.with_name("real"))


Spoil = Callable[[Path], object]
DRILL: dict[str, tuple[Spoil, str]] = {
    "byte flipped": (flip, "its bytes are not those that were built"),
    "first byte": (lambda p: p.write_bytes(b"F" + DATA[1:]), "its bytes are not those"),
    "truncated": (lambda p: p.write_bytes(DATA[:-1]), "has 2051 bytes of 2052"),
    "longer": (lambda p: p.write_bytes(DATA + b"x"), "has 2053 bytes of 2052"),
    "zero length": (lambda p: p.write_bytes(b""), "is empty"),
    "absent": (lambda p: p.unlink(), "only its sidecar is here"),
    "nothing there": (lambda p: (p.unlink(), sidecar(p).unlink()), "no such engine"),
    "a folder": (lambda p: (p.unlink(), p.mkdir()), "is not a file"),
    "no sidecar": (lambda p: sidecar(p).unlink(), "has no sidecar tiny.engine.json"),
    "ONNX renamed": (lambda p: p.write_bytes(ONNX), "is an ONNX model under another name"),
    "ONNX renamed, no sidecar": (
        lambda p: (p.write_bytes(ONNX), sidecar(p).unlink()),
        "is an ONNX model under another name",
    ),
    "RTX file under TensorRT's sidecar": (
        lambda p: p.write_bytes(b"v" + DATA[1:]),
        "is an engine of TensorRT-RTX, its sidecar is of TensorRT",
    ),
    "a link": (link, "is a link, which others can turn; name /"),
    "a link to nothing": (lambda p: (link(p), p.with_name("real").unlink()), "turn; build it ag"),
    "sidecar a link": (lambda p: link(sidecar(p)), "is a link, which others can turn; build it"),
    "sidecar a folder": (lambda p: (sidecar(p).unlink(), sidecar(p).mkdir()), "is not a file"),
    "others write the engine": (lambda p: p.chmod(0o620), "others may write to it; `chmod go-w"),
    "others write the sidecar": (lambda p: sidecar(p).chmod(0o602), "others may write to it"),
    "others write the folder": (lambda p: p.parent.chmod(0o770), "others may write to it"),
}


@pytest.mark.parametrize("case", DRILL)
def test_what_happens_to_files(pair: Path, case: str) -> None:
    assert check_engine(pair, HERE).data == DATA
    spoil, words = DRILL[case]
    spoil(pair)
    assert words in refusal(pair)


@pytest.mark.parametrize(
    ("record", "expected", "words"),
    [
        (RECORD, replace(HERE, device=L4), r"built for Orin \(8.7\), this is NVIDIA L4 \(8.9\)"),
        (RECORD, replace(HERE, device=NEW_ORIN), r"Orin \(8.7\), this is Orin NX \(8.7\)"),
        (RECORD, replace(HERE, version="10.16.1"), "by TensorRT 10.3.0, here runs 10.16.1"),
        (RECORD, replace(HERE, version="10.3.0.26"), "by TensorRT 10.3.0, here runs 10.3.0.26"),
        (RECORD, RTX_HERE, "is an engine of TensorRT, here runs TensorRT-RTX"),
        (RTX, HERE, "is an engine of TensorRT-RTX, here runs TensorRT"),
        (
            RTX,
            replace(HERE, version=None),
            "is an engine of TensorRT-RTX, wanted is one of TensorRT; use --backend rtx$",
        ),
        (RTX, replace(RTX_HERE, device=ORIN), r"capability 7.5, 8.9, 12.0, this is Orin \(8.7\)"),
        (replace(RECORD, os="windows"), HERE, f"built for windows {ARCH}, this is {OS} {ARCH}"),
        (replace(RECORD, arch="riscv"), HERE, f"for {OS} riscv, this is {OS} {ARCH}"),
        (
            RECORD,
            replace(HERE, model_sha256="c" * 64, model_name="my own.onnx"),
            r"another model, tiny version 2 \(aaaaaaaaaaaa...\), wanted is my own.onnx \(ccccc[^;]*"
            r"; name its \.onnx with --model, or `fastrestore build-engine 'my own.onnx' --rebuild",
        ),
        (
            SHIPPED,
            replace(HERE, model_sha256="c" * 64, model_name="my own.onnx"),
            r"; add --model tiny, or `fastrestore build-engine 'my own.onnx' --rebuild",
        ),
        (
            RECORD,
            replace(HERE, shape=(2, 1088, 1920)),
            "frames of 1x736x1280, not 2x1088x1920; .*--for 1920x1088 --batch 2 --plugins on -o ",
        ),
        (
            replace(RECORD, profile={"frame": MOVING}),
            replace(HERE, shape=(1, 32, 2048)),
            "frames of 1x64x64 to 4x1088x1920, nearest 1x64x1920, not 1x32x2048",
        ),
    ],
)
def test_what_does_not_fit(
    tmp_path: Path, record: EngineRecord, expected: Expected, words: str
) -> None:
    path = tmp_path / "x.engine"
    write_engine(path, RTX_DATA if record.product == "tensorrt_rtx" else DATA, record)
    for trust in (False, True):
        assert re.search(words, refusal(path, expected, trust))


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (RECORD, HERE),
        (RECORD, Expected()),
        (RECORD, None),
        (replace(RECORD, os="windows", arch="x"), None),
        (RTX, RTX_HERE),
        (replace(RTX, compute_capabilities=("8.0+",)), replace(RTX_HERE, device=ORIN)),
        (replace(RTX, compute_capabilities=("8.0+",)), replace(RTX_HERE, device=L4)),
        (replace(RTX, compute_capabilities=(), device=ORIN), replace(RTX_HERE, device=NEW_ORIN)),
        (replace(RECORD, profile={"frame": MOVING}), replace(HERE, shape=(4, 64, 1920))),
    ],
)
def test_what_fits(tmp_path: Path, record: EngineRecord, expected: Expected | None) -> None:
    path = tmp_path / "x.engine"
    written = write_engine(path, DATA if record.product == "tensorrt" else RTX_DATA, record)
    found = check_engine(path, expected)
    assert (found.path, found.record) == (path, written)
    assert written.engine_bytes == len(found.data) == path.stat().st_size
    assert written == read_record(path)


def test_the_cheapest_difference_comes_first(pair: Path) -> None:
    """Spoiled by everything at once, and mended one by one: the order is fixed."""
    wrong = replace(
        HERE,
        product="tensorrt_rtx",
        version="9",
        os="plan9",
        device=L4,
        model_sha256="f" * 64,
        shape=(1, 8, 8),
    )
    flip(pair)
    flipped = pair.read_bytes()
    pair.write_bytes(flipped + b"x")
    pair.parent.chmod(0o777)
    assert "others may write" in refusal(pair, wrong)
    pair.parent.chmod(0o700)
    assert "bytes of" in refusal(pair, wrong)
    pair.write_bytes(flipped)
    found = []
    for name in ("product", "version", "os", "device", "model_sha256", "shape"):
        found.append(refusal(pair, wrong))
        wrong = replace(wrong, **{name: getattr(HERE, name)})
    words = ("here runs TensorRT-RTX", "here runs 9", "plan9", "NVIDIA L4", "another", "1x8x8")
    assert all(word in text for word, text in zip(words, found, strict=True))
    assert "SHA-256" in refusal(pair, wrong)


def test_another_owner_is_refused(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = {name: getattr(os, name) for name in ("stat", "fstat")}

    def belongs(folder: bool, engine: bool) -> None:
        def fake(name: str) -> Callable[..., os.stat_result]:
            def call(path: Any, **options: Any) -> os.stat_result:
                info = list(usual[name](path, **options))
                foreign = folder if stat.S_ISDIR(info[0]) else engine
                info[4] = 4321 if foreign else 1234
                return os.stat_result(info)

            return call

        for name in usual:
            monkeypatch.setattr(engine_file.os, name, fake(name))

    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    belongs(folder=False, engine=False)
    assert check_engine(pair, HERE).data == DATA
    belongs(folder=True, engine=False)
    assert refusal(pair).startswith(f"{pair.parent}: belongs to another user")
    belongs(folder=False, engine=True)
    assert refusal(pair).startswith(f"{pair}: belongs to another user")
    assert check_engine(pair, HERE, trust=True).data == DATA
    monkeypatch.setattr(os, "geteuid", lambda: 4321)
    belongs(folder=True, engine=True)
    assert check_engine(pair, HERE).data == DATA


def test_root_and_a_sticky_folder_are_no_strangers(
    pair: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    info = list(os.stat(pair.parent))
    info[0] = stat.S_IFDIR | 0o1777
    info[4] = 0
    engine_file.refuse_hands(pair.parent, os.stat_result(info))  # as /tmp is
    info[0] = stat.S_IFREG | 0o1622  # on a file the bit means nothing
    with pytest.raises(EngineError, match="others may write"):
        engine_file.refuse_hands(pair, os.stat_result(info))


def test_trust_skips_owner_and_sidecar_and_nothing_else(pair: Path) -> None:
    pair.parent.chmod(0o777)
    assert check_engine(pair, HERE, trust=True).data == DATA
    assert "built for Orin" in refusal(pair, replace(HERE, device=L4), trust=True)
    flip(pair)
    assert "SHA-256" in refusal(pair, trust=True)
    sidecar(pair).unlink()
    assert check_engine(pair, HERE, trust=True).record is None
    assert "is an engine of TensorRT, here" in refusal(pair, RTX_HERE, trust=True)
    pair.write_bytes(b"ELF" + DATA)
    assert "is no engine of TensorRT" in refusal(pair, trust=True)
    pair.write_bytes(RTX_DATA)
    assert check_engine(pair, RTX_HERE, trust=True).data == RTX_DATA
    pair.write_bytes(RTX_DATA[:-1])
    assert "was cut short" in refusal(pair, RTX_HERE, trust=True)
    link(pair)
    assert "is a link" in refusal(pair, trust=True)


def test_a_large_engine_is_checked_quickly_and_natively_touches_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.engine"
    write_engine(path, DATA + bytes(20_000_000), RECORD)
    best = 1.0
    for _ in range(3):  # the machine may be busy
        began = time.perf_counter()
        check_engine(path, HERE)
        best = min(best, time.perf_counter() - began)
    assert best < 0.2
    code = (
        "import sys; from fastrestore.engine_file import check_engine; check_engine(sys.argv[1])\n"
        "print([m for m in sys.modules if m.split('.')[0] in "
        "('tensorrt', 'tensorrt_rtx', 'cuda', 'pycuda', 'onnx', 'torch', 'ctypes')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(json.loads(done.stdout.replace("'", '"'))) <= {"ctypes", "ctypes._endian"}


def test_an_engine_of_rtx_is_known_by_its_head(tmp_path: Path) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    log = log_of(trt).sink  # it would warn of a second logger
    builder = trt.Builder(log)
    network = builder.create_network(0)
    frame = network.add_input("frame", trt.DataType.FLOAT, (1, 1, 4, 4))
    layer = network.add_activation(frame, trt.ActivationType.RELU)
    network.mark_output(layer.get_output(0))
    data = bytes(builder.build_serialized_network(network, builder.create_builder_config()))
    path = tmp_path / "x.engine"
    path.write_bytes(data)
    assert check_engine(path, RTX_HERE, trust=True).data == data
    assert "TensorRT-RTX, here runs TensorRT" in refusal(path, HERE, trust=True)
    path.write_bytes(data + b"x")
    assert "was cut short" in refusal(path, RTX_HERE, trust=True)


def test_the_mending_command() -> None:
    usual = "--rebuild --target tensorrt --precision fp16 --for 1280x736 --plugins on"
    assert rebuild(SHIPPED) == f"`fastrestore build-engine tiny {usual}`"
    assert "--target rtx" in rebuild(SHIPPED, RTX_HERE)
    batch = replace(SHIPPED, profile={"frame": ((2, 736, 1280, 3),) * 3}, opt_level=5)
    assert rebuild(replace(batch, plugins={})).endswith(" --for 1280x736 --batch 2 --opt-level 5`")
    tried = replace(SHIPPED, plugins={}, reasons=(lowered(5, 3),))  # asks for what was asked for
    assert rebuild(tried).endswith(" --for 1280x736 --opt-level 5`")


def test_the_mending_command_says_all_that_was_said() -> None:
    told = replace(
        SHIPPED,
        precision="int8",
        plugins={},
        int8_sha256="e" * 64,
        calibration="/home/me/my photos",
        workspace_mb=512,
    )
    words = " --precision int8 --for 1280x736 --calibration '/home/me/my photos' --workspace 512`"
    assert rebuild(told).endswith(words)
    assert rebuild(told, replace(HERE, index=2)).endswith(" --workspace 512 --device 2`")
    assert rebuild(SHIPPED).endswith(" --plugins on`")
    assert "--plugins" not in rebuild(SHIPPED, RTX_HERE)  # which takes none
    there = "linux" if OS == "windows" else "windows"
    taken = replace(RTX, os=there)
    assert rebuild(taken).endswith(" --windows`") == (there == "windows")
    assert "--windows" not in rebuild(taken, RTX_HERE)  # which is to run here


def test_the_mend_where_the_wanted_product_is_not_installed() -> None:
    assert rebuild(RTX, Expected("tensorrt")) == "use --backend rtx"
    assert rebuild(RECORD, Expected("tensorrt_rtx")) == "use --backend tensorrt"


def test_a_damaged_engine_of_an_older_fastrestore_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new one would get another name in the cache, and this one would be found again."""
    monkeypatch.setenv("FASTRESTORE_CACHE", str(tmp_path))
    path = tmp_path / "engines" / "x.engine"
    for version, told in ((__version__, False), ("0.0.9", True)):
        write_engine(path, DATA, replace(RECORD, code_version=version))
        assert " -o " not in refusal(path, replace(HERE, version="11"))
        flip(path)
        assert (f" -o {path}`" in refusal(path)) == told
        path.write_bytes(DATA[:-1])
        assert (f" -o {path}`" in refusal(path)) == told


def test_the_mending_command_of_a_model_that_does_not_ship() -> None:
    words = "build it again from its .onnx: `fastrestore build-engine FILE.onnx --rebuild --target "
    assert rebuild(RECORD).startswith(words)  # the shipped name, another file
    assert rebuild(replace(SHIPPED, model=replace(MODEL, name="own"))).startswith(words)
    assert rebuild(RECORD, Expected(model_name="tiny")).startswith(words)
    wanted = Expected(model_name="-my own.onnx", model_sha256="c" * 64)
    assert rebuild(RECORD, wanted).startswith("`fastrestore build-engine './-my own.onnx' --reb")
    wanted = Expected(model_name="tiny", model_sha256=SHIPPED.model.sha256)
    assert rebuild(RECORD, wanted).startswith("`fastrestore build-engine tiny --rebuild ")


def test_the_mending_command_names_a_place_outside_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTRESTORE_CACHE", str(tmp_path / "cache"))
    assert " -o " not in rebuild(SHIPPED, path=tmp_path / "cache" / "engines" / "x.engine")
    path = tmp_path / "my own" / "x.engine"
    assert rebuild(SHIPPED, path=path).endswith(f" -o '{path}'`")
    assert rebuild(SHIPPED, path="-x.engine").endswith(" -o ./-x.engine`")
    assert rebuild(SHIPPED, path=tmp_path / "cache" / "x.engine").endswith("/x.engine`")
    write_engine(path, DATA, SHIPPED)
    assert f" -o '{path}'`" in refusal(path, replace(HERE, version="11"))
    flip(path)
    assert f" -o '{path}'`" in refusal(path)


def test_the_mending_command_of_a_dynamic_engine() -> None:
    moving = replace(SHIPPED, profile={"frame": MOVING})
    moving = replace(moving, plugins={})
    assert rebuild(moving).endswith(" --dynamic 64x64 1280x736 1920x1088`")
    wanted = rebuild(moving, Expected(shape=(2, 32, 2048)))
    assert wanted.endswith(" --dynamic 64x32 1280x736 2048x1088 --batch 2`")


def test_the_mending_command_of_rtx_keeps_its_gpus() -> None:
    own = " --compute-capability 7.5 --compute-capability 8.9 --compute-capability 12.0"
    assert rebuild(RTX).endswith(f"{own}`")
    assert rebuild(RTX, Expected(device=ORIN)).endswith(f"{own} --compute-capability 8.7`")
    assert "--compute" not in rebuild(replace(RTX, compute_capabilities=("8.0+",)))
    assert "--compute" not in rebuild(RTX, Expected("tensorrt", "10.3.0"))
    tuned = replace(RTX, compute_capabilities=(), device=L4)
    assert rebuild(tuned).endswith(" --compute-capability current`")


def test_no_command_is_shown_with_a_hole_in_it(pair: Path, tmp_path: Path) -> None:
    empty, odd = tmp_path / "empty.engine", tmp_path / "odd.engine"
    empty.write_bytes(b"")
    odd.write_bytes(DATA)
    texts = [refusal(empty), refusal(tmp_path / "absent.engine"), refusal(odd)]
    sidecar(pair).write_text("[]")
    texts.append(refusal(pair))
    for text in texts:
        assert "build it again with fastrestore build-engine" in text
        assert "MODEL" not in text


def test_a_path_is_no_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("-x.engine").write_bytes(ONNX)
    with pytest.raises(EngineError, match=r"`fastrestore build-engine \./-x\.engine`"):
        check_engine("-x.engine")
    Path("-x.engine").write_bytes(DATA)
    Path("-x.engine").chmod(0o666)
    with pytest.raises(EngineError, match=r"`chmod go-w \./-x\.engine`"):
        check_engine("-x.engine")


@pytest.mark.skipif(os.name != "posix" or not shutil.which("bash"), reason="there is no bash")
@pytest.mark.parametrize(
    "name", ["a b", "ä☃", "a\nb", "it's\x1b[31m\\n", "\udcff$(id)`id`", "'\r'"]
)
def test_a_path_in_a_command_is_that_path(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    written = argument(path)
    assert written.isprintable()
    command = [str(shutil.which("bash")), "-c", f"printf %s {written}"]
    done = subprocess.run(command, capture_output=True, check=True)
    assert done.stdout == os.fsencode(path)


def test_the_mend_for_another_users_file_is_no_rebuild(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = list(os.stat(pair))
    info[4] = 4321
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    for cache, told in ((tmp_path, True), (tmp_path / "other", False)):
        monkeypatch.setenv("FASTRESTORE_CACHE", str(cache))
        for can_trust in (True, False):
            with pytest.raises(EngineError, match="another user; `sudo chown ") as e:
                engine_file.refuse_hands(pair, os.stat_result(info), can_trust)
            assert "build-engine" not in str(e.value)
            assert ("FASTRESTORE_CACHE" in str(e.value)) == told
            assert ("--trust-engine" in str(e.value)) == can_trust


def test_the_other_products_engine_is_refused_with_the_right_hash(pair: Path) -> None:
    write_engine(pair, RTX_DATA, RECORD)
    for trust in (False, True):
        words = "is an engine of TensorRT-RTX, its sidecar is of TensorRT; "
        assert words in refusal(pair, trust=trust)


@pytest.mark.parametrize(
    "profile",
    [
        {"x": STILL},
        {"frame": ((1, 736, 1280),) * 3},
        {"frame": ((1,),) * 3},
        {"frame": ((),) * 3},
        {"frame": STILL, "sigma": ((),) * 3},
        {"frame": STILL, "mask": ((1, 8),) * 3},
        {"frame": ((1, 736, 2**31, 3),) * 3},
    ],
)
def test_a_profile_that_no_engine_has(pair: Path, profile: dict[str, Any]) -> None:
    told = json.loads(sidecar(pair).read_text())
    sidecar(pair).write_text(json.dumps({**told, "profile": profile}))
    with pytest.raises(EngineError, match=r"profile\."):
        read_record(pair)
    sidecar(pair).write_text(
        json.dumps({**told, "profile": {"frame": STILL, "sigma": ((1,),) * 3}})
    )
    assert read_record(pair).is_static


def test_mutated_sidecars_are_one_line_each(pair: Path) -> None:
    """Bits flipped, parts lost, values of any kind: refused, or only a remark was changed."""
    rng = np.random.default_rng(0)
    good = sidecar(pair).read_bytes()
    told = json.loads(good)
    wild = [
        None,
        True,
        -1,
        2**63,
        1e308,
        float("nan"),
        "",
        "a\nb",
        "\ud800",
        "x" * 99,
        [],
        {},
        [[]],
    ]
    texts = []
    for i in range(200):
        data = bytearray(good)
        at = int(rng.integers(len(data)))
        if i % 4 == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif i % 4 == 1:
            del data[at:]
        elif i % 4 == 2:
            data[at : at + 9] = rng.bytes(int(rng.integers(1, 99)))
        else:
            name, value = [*told][rng.integers(len(told))], wild[rng.integers(len(wild))]
            data = bytearray(json.dumps({**told, name: value}).encode())
        sidecar(pair).write_bytes(data)
        try:
            check_engine(pair, HERE)
        except EngineError as e:
            texts.append(str(e))
    assert len(texts) > 180
    for text in texts:
        assert text.isprintable()
        assert "fastrestore build-engine" in text or "use --backend" in text


# Writing.


def files(path: Path) -> list[str]:
    return sorted(os.listdir(path.parent))


def test_a_pair_is_private_and_alone(pair: Path) -> None:
    assert files(pair) == ["tiny.engine", "tiny.engine.json"]
    modes = [stat.S_IMODE(p.stat().st_mode) for p in (pair.parent, pair, sidecar(pair))]
    assert modes == [0o700, 0o600, 0o600]


def test_a_new_pair_replaces_the_old_one(pair: Path) -> None:
    written = write_engine(pair, DATA + b"new", replace(RECORD, opt_level=4))
    found = check_engine(pair, HERE)
    assert (found.data, found.record) == (DATA + b"new", written)
    assert files(pair) == ["tiny.engine", "tiny.engine.json"]


class Crash(BaseException):
    """As SIGKILL would be: nothing is cleaned up after it but what `finally` does."""


@pytest.mark.parametrize("was_there", [True, False])
@pytest.mark.parametrize("step", range(6))
def test_a_crash_at_any_step_leaves_a_pair_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, was_there: bool
) -> None:
    """Steps are the three files, each written and then given its mode."""
    path = tmp_path / "x.engine"
    if was_there:
        write_engine(path, DATA, RECORD)
    steps, usual = iter(range(100)), engine_file.write_file

    def write(target: Path, data: bytes) -> None:
        if next(steps) == step:
            raise Crash
        usual(target, data)
        if next(steps) == step:
            raise Crash

    monkeypatch.setattr(engine_file, "write_file", write)
    try:
        write_engine(path, DATA + b"new", RECORD)
        crashed = False
    except Crash:
        crashed = True
    monkeypatch.undo()
    assert crashed == (was_there or step < 4)
    whole = step == (5 if was_there else 3) or not crashed
    if whole:
        assert check_engine(path, HERE).data == DATA + b"new"
    elif was_there:
        assert check_engine(path, HERE).data == DATA
    else:
        refusal(path)
    write_engine(path, DATA + b"newer", RECORD)  # and the next one puts all in order
    assert check_engine(path, HERE).data == DATA + b"newer"
    assert files(path) == ["x.engine", "x.engine.json"]


def test_two_crashes_in_a_row_leave_the_old_pair(
    pair: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = engine_file.write_file

    def write(target: Path, data: bytes) -> None:
        if target == sidecar(pair):
            raise Crash
        usual(target, data)

    monkeypatch.setattr(engine_file, "write_file", write)
    for _ in range(2):
        with pytest.raises(Crash):
            write_engine(pair, DATA + b"new", RECORD)
        assert check_engine(pair, HERE).data == DATA
    assert backup(pair).read_bytes() == DATA
    backup(pair).write_bytes(DATA[:-1] + b"!")  # the copy is believed no more than the engine
    assert "bytes of" in refusal(pair) or "SHA-256" in refusal(pair)


@pytest.mark.parametrize(
    "error", [OutputError("x.engine: the disk is full"), KeyboardInterrupt("the disk is full")]
)
@pytest.mark.parametrize("was_there", [True, False])
@pytest.mark.parametrize("name", ["x.engine", "x.engine.json", "x.engine.old"])
def test_a_full_disk_or_ctrl_c_leaves_what_was_there(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    was_there: bool,
    error: BaseException,
) -> None:
    path = tmp_path / "x.engine"
    if was_there:
        write_engine(path, DATA, RECORD)
    usual = engine_file.write_file

    def write(target: Path, data: bytes) -> None:
        if target.name == name:
            raise error
        usual(target, data)

    monkeypatch.setattr(engine_file, "write_file", write)
    if name == "x.engine.old" and not was_there:
        write_engine(path, DATA, RECORD)  # there is nothing to copy
        return
    with pytest.raises(type(error), match="disk is full"):
        write_engine(path, DATA + b"new", RECORD)
    if was_there:
        assert path.read_bytes() == check_engine(path, HERE).data == DATA
        assert files(path) == ["x.engine", "x.engine.json"]
    else:
        assert files(path) == []


def test_a_full_disk_after_a_crash_leaves_the_old_engine(
    pair: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine is new already and its sidecar old: the copy is all that is left of the old."""
    pair.write_bytes(DATA + b"new")
    backup(pair).write_bytes(DATA)
    usual = engine_file.write_file

    def write(target: Path, data: bytes) -> None:
        if target == pair:
            raise OutputError("the disk is full")
        usual(target, data)

    monkeypatch.setattr(engine_file, "write_file", write)
    with pytest.raises(OutputError, match="disk is full"):
        write_engine(pair, DATA + b"newer", RECORD)
    assert check_engine(pair, HERE).data == DATA
    assert files(pair) == ["tiny.engine", "tiny.engine.json"]


def test_a_verified_record_replaces_its_sidecar(pair: Path) -> None:
    record = read_record(pair)
    write_record(pair, replace(record, verification=None))
    assert read_record(pair).verification is None
    assert stat.S_IMODE(sidecar(pair).stat().st_mode) == 0o600
    write_engine(pair, DATA + b"new", RECORD)
    with pytest.raises(EngineError, match="was replaced meanwhile"):
        write_record(pair, record)


WRITER = """
import sys, time
from dataclasses import replace
from fastrestore.engine_file import read_record, write_engine
path, n = sys.argv[1], int(sys.argv[2])
record = read_record(path)
print("ready", flush=True)
i = 0
while True:
    i += 1
    write_engine(path, b"ftrt" + bytes([n]) * (1000 + i % 7), replace(record, opt_level=n))
    time.sleep(0.004)  # or the other one would hardly ever find the lock free
"""


def test_reading_while_two_processes_write(pair: Path) -> None:
    """Every look finds one whole pair, also after the writers were killed in the middle."""
    command = [sys.executable, "-c", WRITER, str(pair)]
    writers = [
        subprocess.Popen([*command, str(n)], cwd=ROOT, stdout=subprocess.PIPE) for n in (1, 2)
    ]
    try:
        for writer in writers:
            assert writer.stdout is not None
            writer.stdout.readline()
        seen = set()
        end = time.monotonic() + 0.7
        while time.monotonic() < end:
            found = check_engine(pair, HERE)
            assert found.record is not None
            seen.add(found.record.opt_level)
            assert found.data == DATA or set(found.data[4:]) == {found.record.opt_level}
    finally:
        for writer in writers:
            writer.send_signal(signal.SIGKILL if os.name == "posix" else signal.SIGTERM)
            writer.communicate()
    assert seen & {1, 2}  # on a busy machine one of them may hardly get its turn
    check_engine(pair, HERE)
    write_engine(pair, DATA, RECORD)
    assert check_engine(pair, HERE).data == DATA


def test_threads_write_one_after_the_other(pair: Path) -> None:
    def write(n: int) -> None:
        for _ in range(5):
            write_engine(pair, bytes([n]) * 50, replace(RECORD, opt_level=n))

    threads = [threading.Thread(target=write, args=(n,)) for n in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    found = check_engine(pair, HERE)
    assert found.record is not None
    assert set(found.data) == {found.record.opt_level}
    assert files(pair) == ["tiny.engine", "tiny.engine.json"]


def test_a_pair_can_be_taken_elsewhere(pair: Path, tmp_path: Path) -> None:
    for source in (pair, sidecar(pair)):
        shutil.copy(source, tmp_path / source.name)
    found = check_engine(tmp_path / pair.name, HERE)
    assert found.record is not None
    assert asdict(found.record) == asdict(read_record(pair))


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="cannot be made") as e:
        write_engine(tmp_path / "file" / "x.engine", DATA, RECORD)
    assert "\n" not in str(e.value)
