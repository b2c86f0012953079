"""The doctor on Jetsons that are well, save power, lack memory, or are containers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fastrestore import jetson, probe
from fastrestore.doctor_check import Check
from fastrestore.doctor_tensorrt import HERE
from tests.fastrestore.fake_machine import ORIN, Machine

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the machines are POSIX ones")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Without a GPU, a program or a package."""
    return Machine(tmp_path, monkeypatch)


CONFIGURED = (
    "< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=1 NAME=25W >\n"
    "< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n< PM_CONFIG DEFAULT=1 >\n"
)


def test_a_jetson_that_is_well(machine: Machine) -> None:
    machine.jetson()
    machine.device(ORIN)
    machine.file("etc/nvpmodel.conf", CONFIGURED)
    machine.file("proc/driver/nvidia/version", "Open Kernel Module for aarch64  540.4.0  Release")
    machine.file("sys/class/devfreq/17000000.gpu/min_freq", "306000000\n")
    machine.file("sys/class/devfreq/17000000.gpu/max_freq", "1020000000\n")
    machine.file("sys/class/devfreq/15340000.vic/min_freq", "1\n")
    machine.file(
        "proc/swaps", "Filename Type Size Used Priority\n/dev/zram0 partition 650240 0 5\n"
    )
    machine.file("usr/lib/aarch64-linux-gnu/libnvinfer.so.10.3.0")
    machine.program(machine.bin / "nvpmodel", "echo 'NV Power Mode: MAXN_SUPER'; echo 2")
    machine.program(machine.bin / "dpkg-query", "printf 6.2.1+b38")
    machine.packages["cuda-bindings"] = "12.9.10"
    machine.answers["import:cuda.bindings.driver"] = {"version": None}
    machine.installed("tensorrt", "10.3.0")
    where = f"{machine.root}/usr/lib/aarch64-linux-gnu"
    assert machine.found() == [
        Check("Jetson", "ok", "NVIDIA Jetson Orin Nano, L4T 36.4.3, JetPack 6.2.1"),
        Check("power mode", "ok", "MAXN_SUPER (2)"),
        Check(
            "clocks",
            "ok",
            "GPU 306 to 1020 MHz, not locked; `sudo jetson_clocks` before measuring",
        ),
        Check(
            "shared memory",
            "ok",
            "5100 of 7620 MB free for processor and GPU, 635 MB of swap, all of it compressed "
            "memory",
        ),
        Check("GPU driver", "ok", "540.4.0, CUDA 12.6"),
        Check("GPU 0", "ok", "Orin, compute capability 8.7, 7620 MB shared"),
        Check("cuda-bindings", "ok", "12.9.10"),
        Check("libnvinfer", "ok", f"10.3.0 in {where}"),
        Check("TensorRT", "ok", "10.3.0"),
        Check(
            "engines",
            "ok",
            f"none in {os.environ['FASTRESTORE_CACHE']}/engines; "
            "`fastrestore build-engine tiny` makes one",
        ),
    ]


def test_a_jetson_that_saves_power(machine: Machine) -> None:
    machine.jetson()
    machine.file("etc/nvpmodel.conf", CONFIGURED)
    machine.file("var/lib/nvpmodel/status", "pmode:0001 fmode:quiet")
    machine.program(machine.bin / "nvpmodel", "echo 'NVPM ERROR: only root'; exit 1")
    check = machine.check("power mode")
    assert (check.status, check.detail) == ("warn", "25W (1), slower than MAXN_SUPER")
    assert check.mend.startswith("sudo nvpmodel -m 2 ")


def test_the_fastest_of_two_modes_is_named(machine: Machine) -> None:
    machine.jetson()
    machine.file("etc/nvpmodel.conf", CONFIGURED.replace("ID=0 NAME=15W", "ID=0 NAME=MAXN"))
    machine.file("var/lib/nvpmodel/status", "pmode:0001")
    assert machine.check("power mode").mend.startswith("sudo nvpmodel -m 2 ")


def test_a_power_mode_that_is_not_told(machine: Machine) -> None:
    machine.jetson()
    assert machine.check("power mode").detail.startswith("not told to this user")
    machine.program(machine.bin / "nvpmodel", "exec /bin/sleep 60")
    machine.patch.setattr(probe, "COMMAND_S", 0.1)
    assert machine.check("power mode").status == "ok"


def test_a_board_without_a_fastest_mode_is_left_alone(machine: Machine) -> None:
    machine.jetson()
    machine.file("etc/nvpmodel.conf", "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=7W >")
    machine.file("var/lib/nvpmodel/status", "pmode:0001")
    assert machine.check("power mode") == Check("power mode", "ok", "7W (1)")


def test_locked_clocks(machine: Machine) -> None:
    machine.jetson()
    for name in ("min_freq", "max_freq"):
        machine.file(f"sys/class/devfreq/gpu-gpc-0/{name}", "1575000000")
    assert machine.check("clocks").detail == "GPU locked at 1575 MHz"


def test_little_memory_on_a_jetson(machine: Machine) -> None:
    machine.jetson()
    machine.file("proc/meminfo", "MemTotal: 7802880 kB\nMemAvailable: 1024000 kB\n")
    check = machine.check("shared memory")
    assert check.status == "warn"
    assert "1000 of 7620 MB free" in check.detail
    assert "no swap" in check.detail


@pytest.mark.parametrize(
    ("l4t", "version"),
    [("36.4.0", "6.1"), ("36.4.3", "6.2"), ("36.5", "6.2"), ("39.2.0", "7.2"), ("99.1", None)],
)
def test_jetpack_without_its_package(machine: Machine, l4t: str, version: str | None) -> None:
    assert jetson.jetpack(l4t) == version
    machine.jetson(l4t)
    assert jetson.release(machine.root) == l4t


def test_a_jetpack_that_is_too_old(machine: Machine) -> None:
    machine.jetson("35.4.1")
    check = machine.check("Jetson")
    assert check.status == "warn"
    assert "install JetPack 6.2" in check.mend


def test_a_jetson_container_without_its_runtime(machine: Machine) -> None:
    machine.jetson(where="elsewhere")
    machine.file(".dockerenv")
    found = {c.name: c for c in machine.found()}
    assert found["Jetson"].detail == "NVIDIA Jetson Orin Nano"
    assert found["power mode"].detail.startswith("not told to this container")
    assert found["GPU driver"].mend == "start the container with `--runtime nvidia`"


@pytest.mark.parametrize("text", ["cannot open shared object file: No such file", "file too short"])
def test_the_compiler_of_dla_is_missing(machine: Machine, text: str) -> None:
    machine.device(ORIN)
    machine.installed("tensorrt", "10.3.0", {"error": f"ImportError: libnvdla_compiler.so: {text}"})
    for l4t, container, mend in (
        ("36.4.3", False, "sudo apt install nvidia-l4t-dla-compiler"),
        (
            "36.4.3",
            True,
            "sudo apt install nvidia-l4t-dla-compiler on the host, not in the container",
        ),
        (
            "39.2.0",
            True,
            "JetPack 7 has none: use its own TensorRT, not that of an image for JetPack 6",
        ),
    ):
        machine.jetson(l4t)
        if container:
            machine.file(".dockerenv")
        check = machine.check("TensorRT")
        assert check.detail == "10.3.0, cannot be imported: libnvdla_compiler.so is not found"
        assert (check.status, check.mend) == ("fail", mend)


def test_a_jetson_without_tensorrt(machine: Machine) -> None:
    machine.jetson()
    machine.device(ORIN)
    check = machine.check("TensorRT")
    assert check.status == "ok"
    assert "sudo apt install tensorrt python3-libnvinfer" in check.detail
    assert f"python{HERE} -m venv --system-site-packages" in check.detail
