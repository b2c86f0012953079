"""The doctor's findings on whole and damaged installations, and what it reads of the machine."""

from __future__ import annotations

import builtins
import hashlib
import importlib
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fastrestore import doctor, environment
from fastrestore.arrays import F32, U8
from fastrestore.doctor import Need
from fastrestore.doctor_check import Check, broken, guarded
from fastrestore.errors import ModelError
from fastrestore.spec import KEY, ModelSpec

ROOT = Path(__file__).resolve().parents[2]


def model_bytes(**changes: Any) -> bytes:
    """A ModelProto with nothing but the spec in its metadata (field 14: key 1, value 2)."""
    fields = {"name": "tiny", "preset": "tiny", "multiple": 16, "halo": 64, "levels": 6}
    spec = ModelSpec(**{**fields, "track": "free", "licence": "CC0-1.0", **changes})

    def field(number: int, value: bytes) -> bytes:
        size = len(value)
        return bytes([number << 3 | 2, size & 127 | 128, size >> 7]) + value

    return field(14, field(1, KEY.encode()) + field(2, spec.to_json().encode()))


class FakeBackend:
    """Returns the frame, unless told to misbehave."""

    def __init__(self, spoil: Callable[[U8], U8]) -> None:
        self.spoil = spoil
        self.closed = False

    def run(self, frame: U8, mask: U8, state: U8, sigma: F32) -> tuple[U8, U8]:
        return self.spoil(frame), state

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(doctor, "shipped_models", lambda: sorted(tmp_path.glob("*.onnx")))
    monkeypatch.setattr(doctor, "BACKENDS", {"ort": "json"})  # any module that is there
    return tmp_path


def run_with(monkeypatch: pytest.MonkeyPatch, spoil: Callable[[U8], U8]) -> FakeBackend:
    backend = FakeBackend(spoil)
    monkeypatch.setattr(doctor, "open_backend", lambda path, name, threads: backend)
    return backend


def models(has_device: bool = False) -> list[Check]:
    return list(doctor._models(has_device))


def test_a_good_model_passes(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = model_bytes()
    (weights / "tiny.onnx").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    (weights / "tiny.md").write_text(f"# tiny\n\n- SHA-256: {digest}\n")
    backend = run_with(monkeypatch, lambda frame: frame)
    file, run = models()
    assert (file.name, file.status) == ("model tiny", "ok")
    assert "as on its card" in file.detail
    assert (run.name, run.status, run.mend) == ("run tiny on ort", "ok", "")
    assert backend.closed


def test_a_changed_model_fails(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (weights / "tiny.onnx").write_bytes(model_bytes())
    (weights / "tiny.md").write_text("SHA-256: " + "0" * 64)
    run_with(monkeypatch, lambda frame: frame)
    file = models()[0]
    assert file.status == "fail"
    assert "card says 000000000000" in file.detail
    assert "reinstall" in file.mend


@pytest.mark.parametrize("data", [b"", b"no protobuf at all", model_bytes()[:-9]])
def test_an_unreadable_model_fails(weights: Path, data: bytes) -> None:
    (weights / "tiny.onnx").write_bytes(data)
    (file,) = models()
    assert (file.status, file.mend) == ("fail", "reinstall fastrestore")
    assert "tiny.onnx" in file.detail


def test_no_model_fails(weights: Path) -> None:
    (check,) = models()
    assert (check.status, check.detail) == ("fail", "none shipped")


def test_a_detector_is_not_run_as_a_restorer(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (weights / "found.onnx").write_bytes(model_bytes(kind="detector"))
    run_with(monkeypatch, lambda frame: frame[:0])
    file, search = models()  # the file holds a spec alone
    assert file.status == "ok"
    assert (search.name, search.status) == ("run found on ort", "fail")
    assert search.mend.startswith("reinstall ")


def test_a_detector_looks_at_one_frame(weights: Path, magenta_detector: Path) -> None:
    (weights / "found.onnx").write_bytes(magenta_detector.read_bytes())
    assert [(c.status, c.detail) for c in models()][1:] == [("ok", "64x64 px searched")]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: f.astype(np.float32), "picture came out as float32"),
        (lambda f: f[:, 1:], "(1, 63, 64, 3)"),
        (lambda f: f // 2, "outside the hole moved by 12"),
    ],
)
def test_wrong_output_fails(
    weights: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[U8], U8], said: str
) -> None:
    (weights / "tiny.onnx").write_bytes(model_bytes())
    backend = run_with(monkeypatch, spoil)
    run = models()[1]
    assert run.status == "fail"
    assert said in run.detail
    assert backend.closed


def test_what_happens_in_the_hole_is_not_judged(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(frame: U8) -> U8:
        restored = frame.copy()
        restored[:, 24:40, 24:40] = 0
        return restored

    (weights / "tiny.onnx").write_bytes(model_bytes())
    run_with(monkeypatch, fill)
    assert models()[1].status == "ok"


def test_a_backend_that_breaks_is_a_finding(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path, name: str, threads: int) -> None:
        raise OSError("libfoo.so: cannot open\nsecond line")

    (weights / "tiny.onnx").write_bytes(model_bytes())
    monkeypatch.setattr(doctor, "open_backend", broken)
    run = models()[1]
    assert (run.status, run.detail) == ("fail", "OSError: libfoo.so: cannot open")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("SHA-256: " + "ab" * 32, "ab" * 32),
        ("| **SHA-256:** `" + "AB" * 32 + "` |", "ab" * 32),
        ("SHA-256: " + "ab" * 31, None),
        ("nothing", None),
    ],
)
def test_card_digest(tmp_path: Path, text: str, found: str | None) -> None:
    card = tmp_path / "m.md"
    card.write_text(f"# m\n{text}\nlast\n")
    assert doctor.card_digest(card) == found
    assert doctor.card_digest(tmp_path / "absent.md") is None


def test_packages_here_are_present() -> None:
    found = {c.name: c for c in doctor._packages()}
    assert set(found) >= {need.module for need in doctor.CORE}
    assert found["numpy"].detail == f"numpy {np.__version__}"


def test_package_missing_old_and_handmade() -> None:
    missing = doctor._package(Need("no_such_module_", "1", ("nothing",)))
    assert (missing.status, missing.mend) == ("fail", "pip install 'nothing>=1'")
    old = doctor._package(Need("numpy", "999.1", ("numpy",)))
    assert old.status == "fail"
    assert "too old" in old.detail
    handmade = doctor._package(Need("json", "1", ("no-such-distribution-",)))
    assert (handmade.status, handmade.detail) == ("ok", "present, of unknown version")


@pytest.mark.parametrize(
    ("older", "newer"), [("1.9", "1.26"), ("4.9.0.80", "5.0"), ("12rc1", "12.1"), ("10.3", "10.3")]
)
def test_versions_are_compared_as_numbers(older: str, newer: str) -> None:
    assert doctor._numbers(older) <= doctor._numbers(newer)


def test_core_packages_are_those_of_the_project_file() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = text.split("dependencies = [", 1)[1].split("\n]", 1)[0]
    stated = dict(re.findall(r'"([\w-]+)>=([\d.]+)"', block))
    assert stated == {need.distributions[0]: need.least for need in doctor.CORE}


def test_both_onnxruntime_distributions_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    present = {"onnxruntime", *(d for need in doctor.CORE for d in need.distributions[:1])}
    monkeypatch.setattr(
        environment, "package_version", lambda name: "99.0" if name in present else None
    )
    assert {c.status for c in doctor._packages()} == {"ok"}
    present.add("onnxruntime-gpu")
    (twice,) = (c for c in doctor._packages() if c.status != "ok")
    assert (twice.name, twice.status) == ("onnxruntime twice", "warn")
    assert twice.detail == "onnxruntime 99.0 and onnxruntime-gpu 99.0 overwrite each other"
    assert "pip uninstall -y onnxruntime onnxruntime-gpu && " in twice.mend
    assert any("both installed" in w for w in environment.describe()["warnings"])


def test_python_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [c.status for c in doctor._python()] == ["ok"]
    monkeypatch.setattr(doctor, "PYTHON", (99, 1))
    (check,) = doctor._python()
    assert (check.status, check.mend) == ("fail", "install Python 99.1 or newer")


def test_codecs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "CODECS", ("ffv1", "no_such_codec"))
    assert [(c.name, c.status) for c in doctor._codecs()] == [
        ("ffv1", "ok"),
        ("no_such_codec", "warn"),
    ]


def test_temp_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor.tempfile, "tempdir", str(tmp_path))
    usage = SimpleNamespace(free=5 << 30)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: usage)
    assert [c.status for c in doctor._temp_folder()] == ["ok"]
    usage.free = 5 << 20
    (full,) = doctor._temp_folder()
    assert (full.status, "5 MB free" in full.detail) == ("warn", True)
    monkeypatch.setattr(doctor.tempfile, "tempdir", str(tmp_path / "absent"))
    (check,) = doctor._temp_folder()
    assert check.status == "fail"
    assert "TMPDIR" in check.mend


@pytest.mark.parametrize(
    ("available", "limit", "swap", "status"),
    [
        (9000, None, 0, "ok"),
        (9000, 500, 0, "warn"),
        (500, None, 0, "warn"),
        (9000, None, 3, "warn"),
        (None, None, None, "ok"),
    ],
)
def test_memory(
    monkeypatch: pytest.MonkeyPatch,
    available: int | None,
    limit: int | None,
    swap: int | None,
    status: str,
) -> None:
    memory = {"total": 9999, "available": available, "limit": limit, "swap_used": swap}
    monkeypatch.setattr(environment, "memory_mb", lambda: memory)
    assert [c.status for c in doctor._memory()] == [status]


def test_busy_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "usable_cores", lambda: 4)
    for load, status in (([1.9, 0, 0], "ok"), ([2.1, 0, 0], "warn"), (None, "ok")):
        monkeypatch.setattr(environment, "load_average", lambda load=load: load)
        assert [c.status for c in doctor._cores()] == [status]


def test_missing_and_broken_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "BACKENDS", {"ort": "no_ort_", "openvino": "no_openvino_"})
    core, optional = doctor._backends(has_device=False)
    assert (core.status, optional.status) == ("fail", "ok")
    assert "fastrestore[openvino]" in optional.detail
    monkeypatch.setattr(doctor, "BACKENDS", {"triton": "no_triton_"})
    (optional,) = doctor._backends(has_device=False)
    assert (optional.status, optional.mend) == ("ok", "")
    assert "fastrestore[kernels]" in optional.detail

    def broken(name: str) -> None:
        raise ImportError("undefined symbol: foo")

    monkeypatch.setattr(doctor, "BACKENDS", {"ort": "json"})
    monkeypatch.setattr(importlib, "import_module", broken)
    (check,) = doctor._backends(has_device=False)
    assert (check.status, check.detail) == ("fail", "ImportError: undefined symbol: foo")
    assert "--force-reinstall json" in check.mend


def test_a_backend_without_its_device_is_not_tried(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (weights / "tiny.onnx").write_bytes(model_bytes())
    run_with(monkeypatch, lambda frame: frame)
    monkeypatch.setattr(doctor, "BACKENDS", {"ort": "json", "triton": "json"})
    torch = ["2.13.0+cu126"]
    monkeypatch.setattr(environment, "package_version", lambda name: torch[0])
    for there, runs in ((False, ["ort"]), (True, ["ort", "triton"])):
        found = list(doctor._backends(there))
        assert [c.status for c in found] == ["ok", "ok"]
        assert ("no CUDA device" in found[1].detail) is not there
        assert [c.name for c in models(there)[1:]] == [f"run tiny on {name}" for name in runs]
    torch[0] = "2.13.0+cpu"
    assert "made for the processor" in list(doctor._backends(has_device=True))[1].detail
    assert [c.name for c in models(has_device=True)[1:]] == ["run tiny on ort"]


@pytest.mark.parametrize(("answer", "there"), [(0, True), (100, False), (None, False)])
def test_the_cuda_driver_is_asked(
    monkeypatch: pytest.MonkeyPatch, answer: int | None, there: bool
) -> None:
    def load(name: str) -> Any:
        assert name == "libcuda.so.1"
        if answer is None:
            raise OSError("libcuda.so.1: cannot open shared object file")
        return SimpleNamespace(cuInit=lambda flags: answer)

    monkeypatch.setattr(environment.ctypes, "CDLL", load)
    assert environment.has_cuda_device() is there


def test_a_step_that_breaks_does_not_end_the_doctor() -> None:
    def step() -> Any:
        yield Check("a", "ok", "fine")
        raise RuntimeError("boom")

    assert [(c.name, c.status) for c in guarded("b", step)] == [("a", "ok"), ("b", "fail")]
    said = broken("c", ModelError("x.onnx: bad"), "mend").detail
    assert said == "x.onnx: bad"  # our own errors need no class name


def test_all_checks_import_no_extra(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extras = tuple(doctor.EXTRAS)
    before = {name for name in extras if name in sys.modules}
    real = builtins.__import__

    def watched(name: str, *args: Any) -> Any:
        assert name.split(".")[0] not in extras, name
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", watched)
    found = doctor.checks()
    monkeypatch.undo()
    assert {name for name in extras if name in sys.modules} == before
    names = [c.name for c in found]
    assert {"python", "numpy", "torch", "cores", "memory", "temp folder", "ffv1"} <= set(names)
    assert len(names) == len(set(names))
    assert all(c.mend for c in found if c.status != "ok")
    assert all("\n" not in c.detail for c in found)


def test_json_and_worst() -> None:
    found = [Check("a", "ok", "1"), Check("b", "warn", "2", "do"), Check("c", "ok", "3")]
    assert doctor.worst(found) == "warn"
    assert doctor.worst([*found, Check("d", "fail", "4", "do")]) == "fail"
    assert doctor.worst([]) == "ok"
    report = json.loads(doctor.to_json(found))
    assert (report["schema"], report["status"]) == (1, "warn")
    assert report["checks"][1] == {"name": "b", "status": "warn", "detail": "2", "mend": "do"}
    assert report["env"]["usable_cores"] >= 1


# Cores and memory, from files laid out as the kernel lays them out.


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"proc/self/cgroup": "0::/a/b\n", "cg/a/b/cpu.max": "max 100000\n"}, 8),
        ({"proc/self/cgroup": "0::/a/b\n", "cg/a/b/cpu.max": "250000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/a/b\n", "cg/a/cpu.max": "300000 100000\n"}, 3),
        ({"proc/self/cgroup": "0::/host/only\n", "cg/cpu.max": "50000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/x\n", "cg/unified/x/cpu.max": "400000 100000\n"}, 4),
        (
            {
                "proc/self/cgroup": "5:memory:/m\n4:cpu,cpuacct:/d\n0::/\n",
                "cg/cpu,cpuacct/d/cpu.cfs_quota_us": "500000\n",
                "cg/cpu,cpuacct/d/cpu.cfs_period_us": "100000\n",
            },
            5,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu:/\n",
                "cg/cpu/cpu.cfs_quota_us": "-1\n",
                "cg/cpu/cpu.cfs_period_us": "100000\n",
            },
            8,
        ),
        ({"proc/self/cgroup": "0::/a\n", "cg/a/cpu.max": "9900000 100000\n"}, 8),
    ],
)
def test_usable_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cores: int
) -> None:
    write(tmp_path, files)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert environment.usable_cores(tmp_path / "proc", tmp_path / "cg") == cores


def test_usable_cores_without_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert environment.usable_cores(tmp_path, tmp_path) == 3
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert environment.usable_cores(tmp_path, tmp_path) == 1


def test_memory_and_swap(tmp_path: Path) -> None:
    meminfo = "MemTotal: 8192000 kB\nMemAvailable: 4096000 kB\nSwapTotal: 2048 kB\nSwapFree: 0 kB\n"
    group = {"proc/self/cgroup": "0::/a\n", "cg/a/memory.max": f"{512 << 20}\n"}
    write(tmp_path, {"proc/meminfo": meminfo, **group})
    assert environment.memory_mb(tmp_path / "proc", tmp_path / "cg") == {
        "total": 8000,
        "available": 4000,
        "limit": 512,
        "swap_used": 2,
    }
    unlimited = {"proc/self/cgroup": "4:memory:/\n"}
    write(tmp_path, {**unlimited, "cg/memory/memory.limit_in_bytes": "9223372036854771712\n"})
    assert environment.memory_mb(tmp_path / "proc", tmp_path / "cg")["limit"] is None
    assert set(environment.memory_mb(tmp_path / "no", tmp_path / "no").values()) == {None}
