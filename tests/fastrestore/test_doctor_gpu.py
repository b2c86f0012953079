"""The doctor on the driver and its devices, the CUDA bindings, and machines without a GPU."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from fastrestore import cuda_toolkit, doctor, doctor_tensorrt
from fastrestore.doctor_check import Check
from tests.fastrestore.fake_machine import H100, ORIN, RTX4070, Machine, lines

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the machines are POSIX ones")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Without a GPU, a program or a package."""
    return Machine(tmp_path, monkeypatch)


# No GPU


def test_a_machine_without_a_gpu_gets_one_line(machine: Machine) -> None:
    (only,) = machine.found()
    assert only == Check("GPU", "ok", "none of NVIDIA's; the processor does the work")


@pytest.mark.parametrize("code", [0, 100, 804, 999])
def test_a_driver_of_an_image_without_a_gpu_is_no_fault(machine: Machine, code: int) -> None:
    machine.refuses(code)
    (only,) = machine.found()
    assert (only.name, only.status) == ("GPU", "ok")


def test_rtx_without_a_gpu_is_a_builder(machine: Machine) -> None:
    machine.installed("tensorrt_rtx", "1.7.1.116")
    found = machine.found()
    assert lines(found) == [("GPU", "ok"), ("TensorRT-RTX", "ok"), ("engines", "ok")]
    assert found[1].detail.startswith("1.7.1.116; builds for other machines")


def test_what_is_broken_where_nothing_could_use_it_is_no_failure(machine: Machine) -> None:
    machine.installed("tensorrt", "10.3.0", {"error": "ImportError: libnvinfer.so.10: cannot open"})
    machine.installed("tensorrt_rtx", "1.7.1.116", {"lost": "crashed (SIGSEGV)"})
    assert doctor.worst(machine.found()) == "warn"


# A desktop


def test_a_desktop_without_tensorrt(machine: Machine) -> None:
    machine.device(RTX4070, 12090)
    machine.file(
        "proc/driver/nvidia/version",
        "NVRM version: NVIDIA UNIX Open Kernel Module for "
        "x86_64  575.57.08  Release Build\nGCC version:  gcc version 12.3.0\n",
    )
    found = machine.found()
    assert found == [
        Check("GPU driver", "ok", "575.57.08, CUDA 12.9"),
        Check("GPU 0", "ok", "RTX 4070, compute capability 8.9, 12282 MB"),
        Check(
            "CUDA binding", "ok", "not installed; engines need one: pip install 'cuda-bindings<13'"
        ),
        Check("TensorRT", "ok", "not installed; optional: pip install 'fastrestore[tensorrt]'"),
        Check("TensorRT-RTX", "ok", "not installed; optional: pip install 'fastrestore[rtx]'"),
    ]


def test_rtx_is_not_offered_where_it_cannot_run(machine: Machine) -> None:
    machine.device(H100)
    assert "TensorRT-RTX" not in {c.name for c in machine.found()}


def test_old_cards_are_told(machine: Machine) -> None:
    machine.device({**RTX4070, "sm": [6, 1]})
    assert machine.check("GPU 0").detail.endswith("too old for TensorRT")


def test_tensorrt_without_a_binding_cannot_run(machine: Machine) -> None:
    machine.device(RTX4070, 13000)
    machine.installed("tensorrt", "10.9.0.34")
    binding = machine.check("CUDA binding")
    assert (binding.status, binding.mend) == ("warn", "pip install cuda-bindings")


@pytest.mark.parametrize(
    ("files", "status", "said", "mend"),
    [
        ({}, "warn", "an NVIDIA card is here, but not its driver", "ubuntu-drivers"),
        ({"proc/driver/nvidia/version": "550.54.14"}, "warn", "550.54.14 is loaded", "libnvidia"),
        (
            {"proc/driver/nvidia/version": "550.54.14", ".dockerenv": ""},
            "warn",
            "the container has no libcuda.so.1",
            "`--gpus all`",
        ),
    ],
)
def test_a_card_without_libcuda(
    machine: Machine, files: dict[str, str], status: str, said: str, mend: str
) -> None:
    machine.file("sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n")
    machine.file("sys/bus/pci/devices/0000:01:00.0/class", "0x030000\n")
    machine.file("sys/bus/pci/devices/0000:01:00.1/vendor", "0x10de\n")  # its sound
    for name, text in files.items():
        machine.file(name, text)
    driver = machine.check("GPU driver")
    assert driver.status == status
    assert said in driver.detail
    assert mend in driver.mend


def test_another_makers_card_is_none(machine: Machine) -> None:
    machine.file("sys/bus/pci/devices/0000:00:02.0/vendor", "0x8086\n")
    machine.file("sys/bus/pci/devices/0000:00:02.0/class", "0x030000\n")
    machine.file("sys/bus/pci/devices/0000:01:00.1/vendor", "0x10de\n")
    machine.file("sys/bus/pci/devices/0000:01:00.1/class", "0x040300\n")
    assert lines(machine.found()) == [("GPU", "ok")]


@pytest.mark.parametrize(
    ("code", "said", "mend"),
    [
        (803, "of different versions (803)", "restart the machine"),
        (802, "not ready yet (802)", "start the fabric manager"),
        (4711, "cuInit answers 4711 (4711)", "restart the machine"),
        (0, "finds no device (100)", "look for the card"),
    ],
)
def test_a_driver_that_refuses(machine: Machine, code: int, said: str, mend: str) -> None:
    machine.file("proc/driver/nvidia/version", "Kernel Module  550.54.14  Thu")
    machine.refuses(code)
    driver = machine.check("GPU driver")
    assert driver.status == "fail"
    assert driver.detail.startswith("driver 550.54.14 does not start: ")
    assert said in driver.detail
    assert driver.mend.startswith(mend)


def test_devices_that_are_hidden(machine: Machine) -> None:
    machine.file("proc/driver/nvidia/version", "550.54.14")
    machine.refuses(100)
    machine.patch.setenv("CUDA_VISIBLE_DEVICES", "")
    driver = machine.check("GPU driver")
    assert (driver.status, driver.mend) == ("warn", "unset CUDA_VISIBLE_DEVICES")


def test_device_files_of_another_group(machine: Machine) -> None:
    machine.jetson()
    closed = machine.file("dev/nvmap")
    machine.refuses(999)
    real = os.access
    machine.patch.setattr(os, "access", lambda p, mode: p != closed and real(p, mode))
    driver = machine.check("GPU driver")
    assert "may not use /dev/nvmap" in driver.detail
    assert "usermod -aG video" in driver.mend


def test_a_driver_that_never_answers_is_asked_once(machine: Machine) -> None:
    machine.answers = {"cuda": {"lost": "no answer in 10 s"}}
    machine.installed("tensorrt", "10.3.0")
    del machine.answers["import:tensorrt"]  # to ask would be a KeyError
    found = {c.name: c for c in machine.found()}
    assert found["GPU driver"].status == "fail"
    assert found["TensorRT"].detail == "10.3.0; not tried while the driver fails"


# CUDA bindings and the toolkit


def test_cuda_bindings(machine: Machine) -> None:
    machine.device(RTX4070, 12040)
    machine.packages["cuda-bindings"] = "12.9.10"
    machine.answers["import:cuda.bindings.driver"] = {"version": None, "libraries": []}
    assert machine.check("cuda-bindings") == Check("cuda-bindings", "ok", "12.9.10")
    machine.packages["cuda-bindings"] = "13.0.3"
    newer = machine.check("cuda-bindings")
    assert (newer.status, newer.mend) == (
        "warn",
        "pip install --force-reinstall 'cuda-bindings<13'",
    )
    machine.answers["import:cuda.bindings.driver"] = {"error": "ImportError: broken"}
    assert machine.check("cuda-bindings").status == "fail"


def toolkit_at(machine: Machine, name: str, header: bool = True) -> Path:
    folder = machine.root / name
    tell = "echo 'Cuda compilation tools, release 12.6, V12.6.68'"
    machine.program(folder / "bin" / "nvcc", tell)
    if header:
        machine.file(f"{name}/include/cuda.h")
    return folder


def test_a_toolkit_on_path(machine: Machine) -> None:
    folder = toolkit_at(machine, "usr/local/cuda-12.6")
    machine.patch.setenv("PATH", f"{folder}/bin")
    found = cuda_toolkit.toolkit(machine.root)
    assert (found.folder, found.version, found.pitfall) == (folder, "12.6", "")


def test_pycuda_and_no_compiler(machine: Machine) -> None:
    found = cuda_toolkit.toolkit(machine.root)
    assert (found.folder, found.pitfall) == (None, "no CUDA compiler (nvcc) is found")
    machine.jetson()
    assert cuda_toolkit.toolkit(machine.root).mend.startswith("sudo apt install nvidia-cuda-dev")


def test_a_compiler_that_is_not_on_path(machine: Machine) -> None:
    toolkit_at(machine, "usr/local/cuda-9.2")
    folder = toolkit_at(machine, "usr/local/cuda-12.6")
    found = cuda_toolkit.toolkit(machine.root)
    assert found.pitfall == f"nvcc in {folder}/bin is not on PATH"  # 12.6 is newer than 9.2
    assert found.mend == (
        f"export PATH={folder}/bin:$PATH CPATH={folder}/include LIBRARY_PATH={folder}/lib64"
    )


@pytest.mark.parametrize("is_link", [True, False])
def test_a_compiler_that_leads_astray(machine: Machine, is_link: bool) -> None:
    folder = toolkit_at(machine, "usr/local/cuda")
    if is_link:
        (machine.bin / "nvcc").symlink_to(folder / "bin" / "nvcc")
    else:
        machine.program(machine.bin / "nvcc", f'exec {folder}/bin/nvcc "$@"')
    found = cuda_toolkit.toolkit(machine.root)
    kind = "a link" if is_link else "outside its toolkit"
    assert found.folder == folder
    assert found.pitfall.startswith(
        f"{machine.bin}/nvcc is {kind}, and pycuda looks for cuda.h in "
    )
    assert found.mend.startswith(f"export PATH={folder}/bin:")


def test_a_toolkit_without_headers(machine: Machine) -> None:
    folder = toolkit_at(machine, "usr/local/cuda", header=False)
    for path in (machine.bin, folder / "bin"):
        machine.patch.setenv("PATH", str(path))
        found = cuda_toolkit.toolkit(machine.root)
        assert found.pitfall == f"cuda.h is not found beside {folder}/bin/nvcc"
        assert (found.folder, found.version) == (None, "12.6")


def test_a_toolkit_that_the_environment_names(machine: Machine) -> None:
    folder = toolkit_at(machine, "opt/mine")
    machine.patch.setenv("CUDA_HOME", str(folder))
    assert cuda_toolkit.toolkit(machine.root).folder == folder


def test_pycuda_that_is_broken(machine: Machine) -> None:
    machine.device(RTX4070)
    machine.packages["pycuda"] = "2026.1"
    machine.answers["import:pycuda.driver"] = {"version": None}
    assert machine.check("pycuda").status == "ok"
    error = "ImportError: libcurand.so.11: cannot open shared object file"
    machine.answers["import:pycuda.driver"] = {"error": error}
    folder = toolkit_at(machine, "usr/local/cuda")
    check = machine.check("pycuda")
    assert check.status == "fail"
    assert error in check.detail
    assert f"nvcc in {folder}/bin is not on PATH" in check.detail
    assert check.mend.startswith(f"export PATH={folder}/bin:$PATH ")
    machine.patch.setenv("PATH", f"{folder}/bin")
    assert machine.check("pycuda").mend.startswith("pip install --force-reinstall --no-cache-dir")


def test_pitfalls_are_told_where_no_binding_is(machine: Machine) -> None:
    machine.device(ORIN)
    machine.installed("tensorrt", "10.3.0")
    found = {c.name: c for c in machine.found()}
    assert found["CUDA binding"].mend == "pip install 'cuda-bindings<13'"
    assert "no CUDA compiler" in found["pycuda"].detail
    machine.packages["cuda-bindings"] = "12.9.10"
    machine.answers["import:cuda.bindings.driver"] = {"version": None}
    assert not {"CUDA binding", "pycuda"} & {c.name for c in machine.found()}


# The whole doctor


def test_nothing_native_is_imported_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The real machine, whatever it has; RTX is looked at where it is installed."""
    names = ("tensorrt", "tensorrt_rtx", "cuda", "pycuda")
    before = {name for name in names if name in sys.modules}
    monkeypatch.setenv("FASTRESTORE_CACHE", str(tmp_path))
    monkeypatch.setattr(doctor, "shipped_models", lambda: sorted(tmp_path.glob("*.onnx")))
    monkeypatch.setattr(doctor, "BACKENDS", {})
    found = doctor.checks()
    assert {name for name in names if name in sys.modules} == before
    assert any(c.name in ("GPU", "GPU driver") for c in found)
    if doctor_tensorrt.is_installed("tensorrt_rtx"):
        (rtx,) = (c for c in found if c.name == "TensorRT-RTX")
        assert rtx.status == "ok", rtx
