"""A machine made of files: what the doctor would see on a Jetson, a desktop, or without a GPU.

What native code would say is given; `test_probe` is about how it is asked.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from fastrestore import (
    cuda_toolkit,
    doctor_engines,
    doctor_gpu,
    doctor_jetson,
    doctor_tensorrt,
    engine_here,
    probe,
)
from fastrestore.doctor_check import Check

ORIN = {"name": "Orin", "sm": [8, 7], "is_integrated": True, "total_mb": 7620}
RTX4070 = {"name": "RTX 4070", "sm": [8, 9], "is_integrated": False, "total_mb": 12282}
H100 = {"name": "H100", "sm": [9, 0], "is_integrated": False, "total_mb": 81559}
NO_LIBRARY = {"error": "libcuda.so.1: cannot open shared object file: No such file or directory"}


class Machine:
    """A file system of its own, the programs on its PATH, and what its native code answers."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = tmp_path / "root"
        self.bin = tmp_path / "bin"
        self.site = tmp_path / "site"
        self.patch = monkeypatch
        self.packages: dict[str, str] = {}
        self.answers: dict[str, Any] = {"cuda": NO_LIBRARY}
        for folder in (self.root, self.bin, self.site):
            folder.mkdir()
        for name in (
            "LD_LIBRARY_PATH",
            "CONDA_PREFIX",
            "CUDA_VISIBLE_DEVICES",
            *cuda_toolkit.HOMES,
        ):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("PATH", str(self.bin))
        monkeypatch.setenv("FASTRESTORE_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(probe, "_SYSTEM", ())
        monkeypatch.setattr(sys, "path", [str(self.site)])
        for name in ("tensorrt", "tensorrt_rtx", "cuda", "pycuda"):  # of an earlier test
            monkeypatch.delitem(sys.modules, name, raising=False)
        for module in (doctor_gpu, doctor_tensorrt, engine_here):
            monkeypatch.setattr(module, "package_version", self.packages.get)
        for module in (doctor_gpu, doctor_tensorrt, doctor_engines):
            monkeypatch.setattr(module, "ask_native", lambda what: self.answers[what])

    def file(self, name: str, text: str | bytes = "") -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    def program(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def device(self, device: dict[str, Any], version: int = 12060) -> None:
        self.answers["cuda"] = {"code": 0, "version": version, "devices": [device]}

    def refuses(self, code: int) -> None:
        self.answers["cuda"] = {"code": code, "version": 12060, "devices": []}

    def installed(self, name: str, version: str, answer: dict[str, Any] | None = None) -> None:
        """Put a package of TensorRT where Python looks."""
        (self.site / name).mkdir()
        (self.site / name / "__init__.py").write_text("")
        self.packages[name.replace("_", "-")] = version
        good = {"version": version, "file": "", "libraries": []}
        self.answers[f"import:{name}"] = answer or good

    def jetson(self, l4t: str = "36.4.3", where: str = "etc/nv_tegra_release") -> None:
        major, _, rest = l4t.partition(".")
        self.file(where, f"# R{major} (release), REVISION: {rest}, GCID: 38968081, BOARD: generic")
        self.file("proc/device-tree/compatible", b"nvidia,p3768-0000+p3767-0005\0nvidia,tegra234\0")
        self.file("proc/device-tree/model", b"NVIDIA Jetson Orin Nano\0")
        self.file("proc/meminfo", "MemTotal: 7802880 kB\nMemAvailable: 5222400 kB\n")

    def found(self) -> list[Check]:
        """Run what the doctor runs for GPUs, and look at its form."""
        gpu = doctor_gpu.look()
        has_runtime = any(map(doctor_tensorrt.is_installed, ("tensorrt", "tensorrt_rtx")))
        checks = [
            *doctor_jetson.board(self.root),
            *doctor_gpu.driver(gpu, self.root),
            *doctor_gpu.bindings(gpu, has_runtime, self.root),
            *doctor_tensorrt.runtimes(gpu, self.root),
            *doctor_engines.engines(gpu, has_runtime, self.root),
        ]
        assert len({c.name for c in checks}) == len(checks)
        for c in checks:
            assert c.detail.isprintable()
            assert c.mend.isprintable()
            assert bool(c.mend) == (c.status != "ok"), c
        return checks

    def check(self, name: str) -> Check:
        return {c.name: c for c in self.found()}[name]


def lines(checks: list[Check]) -> list[tuple[str, str]]:
    return [(c.name, c.status) for c in checks]
