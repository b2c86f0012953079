"""The doctor on the cache of engines: of no use, never verified, in other hands."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastrestore import engine_here, native
from fastrestore.doctor_check import Check
from fastrestore.engine_cache import engine_path
from fastrestore.engine_file import write_engine
from fastrestore.engine_record import DeviceRecord, EngineRecord, ModelRecord, Verification, system
from tests.fastrestore.fake_machine import ORIN, Machine, lines

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the machines are POSIX ones")

RECORD = EngineRecord(
    product="tensorrt",
    product_version="10.3.0",
    os=system()[0],
    arch=system()[1],
    model=ModelRecord("mine", 2, "a" * 64, "free", "CC0-1.0"),
    precision="fp16",
    profile={"frame": ((1, 736, 1280, 3),) * 3},
    opt_level=3,
    build_seconds=81.5,
    code_version="0.1.0",
    device=DeviceRecord("Orin", "8.7"),
    verification=Verification(58.0, 2.0, 0, 4.5, 12, "ort"),
)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Without a GPU, a program or a package."""
    return Machine(tmp_path, monkeypatch)


def put(
    machine: Machine,
    fits: bool | None = True,
    stale: str = "",
    device: int = 0,
    **changes: Any,
) -> Path:
    """Write an engine, and what is told of it."""
    record = replace(RECORD, **changes)
    path = engine_path(record)
    write_engine(path, b"ftrt" + bytes(999_996), record)
    told = machine.answers.setdefault("engines", {"engines": {}})["engines"]
    told[str(path)] = {"fits": fits, "device": device, "stale": stale}
    return path


def test_engines_that_are_well(machine: Machine) -> None:
    path = put(machine)
    put(machine, precision="int8", fits=None, verification=None)  # for another machine
    found = machine.found()
    assert lines(found) == [("GPU", "ok"), ("engines", "ok")]
    assert found[1].detail == f"2 in {path.parent}, 2.0 MB"


def test_engines_that_are_stale_or_unverified(machine: Machine) -> None:
    put(machine)
    put(machine, precision="int8", stale="built by TensorRT 10.3.0, here is 10.9; `build`")
    unverified = put(machine, precision="fp32", verification=None)
    found = {c.name: c for c in machine.found()}
    assert found["engines stale"] == Check(
        "engines stale",
        "warn",
        "1 of no more use: built by TensorRT 10.3.0, here is 10.9",
        "fastrestore engines prune",
    )
    assert found["engines not verified"].mend == f"fastrestore engines verify {unverified.stem}"
    assert found["engines not verified"].detail.startswith("1 fit")


def test_an_engine_of_a_second_gpu_is_verified_there(machine: Machine) -> None:
    path = put(machine, device=1, verification=None)
    mend = f"fastrestore engines verify {path.stem} --device 1"
    assert machine.check("engines not verified").mend == mend


def test_engines_of_another_power_mode(machine: Machine) -> None:
    machine.jetson()
    machine.file("var/lib/nvpmodel/status", "pmode:0002")
    put(machine, power_mode="2")
    put(machine, power_mode="0", precision="int8", stale="of no use")
    assert "engines' power mode" not in {c.name for c in machine.found()}
    put(machine, power_mode="1", precision="fp32")
    check = machine.check("engines' power mode")
    assert check.detail == "1 built in another power mode, the first in 1; it is 2 now"
    command = "fastrestore build-engine FILE.onnx --rebuild --target tensorrt "
    assert check.mend.startswith(f"build it again from its .onnx: {command}")


def test_the_answer_about_engines_is_lost(machine: Machine) -> None:
    put(machine)
    machine.answers["engines"] = {"lost": "crashed (SIGSEGV)"}
    assert "not known: crashed" in machine.check("engines here").detail
    machine.answers = {"cuda": {"lost": "no answer in 10 s"}}  # then it is not even asked
    assert "not known: the driver fails" in machine.check("engines here").detail


def foreign(machine: Machine, path: Path) -> None:
    """Give a file or folder to another user."""
    if os.geteuid() == 0:
        os.chown(path, 54321, -1)
    else:
        machine.patch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)


def writable(machine: Machine, path: Path) -> None:
    path.chmod(path.stat().st_mode | 0o022)


@pytest.mark.parametrize("has_device", [True, False])
@pytest.mark.parametrize("what", ["folder", "engine"])
@pytest.mark.parametrize(
    ("spoil", "said", "mend"),
    [
        (foreign, "belongs to another user", 'sudo chown -R "$(id -un)" '),
        (writable, "others may write to it", "chmod go-w "),
    ],
)
def test_a_cache_in_other_hands(
    machine: Machine,
    spoil: Callable[[Machine, Path], None],
    said: str,
    mend: str,
    what: str,
    has_device: bool,
) -> None:
    path = put(machine)
    if has_device:
        machine.device(ORIN)
        machine.installed("tensorrt", "10.3.0")
    spoil(machine, path.parent if what == "folder" else path)
    check = machine.check("engine cache")
    assert check.status == ("fail" if has_device else "warn")
    assert said in check.detail
    assert check.mend.startswith(mend)


def test_a_cache_that_sudo_made(machine: Machine) -> None:
    path = put(machine)
    real = os.access
    machine.patch.setattr(os, "access", lambda p, mode: p != path.parent and real(p, mode))
    check = machine.check("engine cache")
    assert check.detail.endswith("cannot be written; was it made with sudo?")
    assert check.mend == f'sudo chown -R "$(id -un)" {path.parent}'


def test_a_cache_that_cannot_be_read(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    machine.patch.setenv("FASTRESTORE_CACHE", str(tmp_path / "file" / "x"))
    check = machine.check("engine cache")
    assert check.status == "warn"
    assert "FASTRESTORE_CACHE" in check.mend


def test_what_is_told_of_engines_is_what_the_engines_command_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTRESTORE_CACHE", str(tmp_path))
    other = DeviceRecord("L4", "8.9")
    monkeypatch.setattr(engine_here, "devices", lambda: [other, DeviceRecord("Orin", "8.7")])
    monkeypatch.setattr(engine_here, "product_version", lambda product: "10.3.0")
    good, old = engine_path(RECORD), engine_path(replace(RECORD, product_version="10.2.0"))
    for path, record in ((good, RECORD), (old, replace(RECORD, product_version="10.2.0"))):
        write_engine(path, b"ftrt" + bytes(99), record)
    told = native.engines()["engines"]
    assert told[str(good)] == {"fits": True, "device": 1, "stale": ""}
    assert told[str(old)]["fits"] is False
    assert "10.2.0" in told[str(old)]["stale"]
