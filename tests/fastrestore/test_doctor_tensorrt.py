"""The doctor on TensorRT: every library that is found, and why its bindings cannot be imported."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fastrestore import doctor_tensorrt, nvinfer
from fastrestore.doctor_check import Check
from fastrestore.doctor_tensorrt import HERE
from tests.fastrestore.fake_machine import RTX4070, Machine, lines

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the machines are POSIX ones")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Without a GPU, a program or a package."""
    return Machine(tmp_path, monkeypatch)


def test_two_libnvinfer_of_different_versions(machine: Machine) -> None:
    machine.device(RTX4070)
    system_library = machine.file("usr/lib/x86_64-linux-gnu/libnvinfer.so.10.3.0")
    (system_library.parent / "libnvinfer.so.10").symlink_to(system_library)
    machine.file("usr/lib/x86_64-linux-gnu/libnvinfer_plugin.so.10.3.0")
    machine.file("usr/lib/x86_64-linux-gnu/stubs/libnvinfer.so.10")
    (only,) = nvinfer.libraries("tensorrt", machine.root)
    assert (only.path, only.version) == (system_library, "10.3.0")
    assert machine.check("libnvinfer").status == "ok"

    (machine.site / "tensorrt_libs").mkdir()
    (machine.site / "tensorrt_libs" / "libnvinfer.so.10").write_bytes(b"")
    info = machine.site / "tensorrt_cu12_libs-10.9.0.34.dist-info"
    info.mkdir()
    check = machine.check("libnvinfer")
    assert check.status == "warn"
    assert check.detail == (
        f"10.9.0.34 in {machine.site}/tensorrt_libs; 10.3.0 in {system_library.parent}"
    )
    assert check.mend.startswith("keep one")
    info.rename(machine.site / "tensorrt_cu12_libs-10.3.0.26.dist-info")  # apt tells less of it
    assert machine.check("libnvinfer").status == "ok"


def test_libraries_that_only_the_environment_names(machine: Machine) -> None:
    machine.file("home/me/TensorRT/lib/libnvinfer.so.8.6.1")
    machine.file("usr/lib/aarch64-linux-gnu/libnvinfer.so.10.3.0")
    machine.patch.setenv("LD_LIBRARY_PATH", f"/no/such:{machine.root}/home/me/TensorRT/lib")
    versions = [x.version for x in nvinfer.libraries("tensorrt", machine.root)]
    assert versions == ["8.6.1", "10.3.0"]
    # without a GPU two are still worth a line, one is not
    assert ("libnvinfer", "warn") in lines(machine.found())


def test_libraries_that_the_loader_knows(machine: Machine, tmp_path: Path) -> None:
    library = tmp_path / "libtensorrt_rtx.so.1.7.1"
    library.write_bytes(b"")
    machine.program(
        machine.bin / "ldconfig",
        f'[ "$1" = -p ] && echo "	libtensorrt_rtx.so.1 (libc6,x86-64) => {library}"',
    )
    assert library in [x.path for x in nvinfer.libraries("tensorrt_rtx")]


@pytest.mark.parametrize(
    ("error", "cause", "mend"),
    [
        (
            "ImportError: libnvinfer.so.10: cannot open shared object file: No such file",
            "libnvinfer.so.10 is not found",
            "pip install tensorrt-cu12-libs==10.9.0.34",
        ),
        (
            "ImportError: libcudart.so.12: cannot open shared object file",
            "libcudart",
            "install what",
        ),
        ("ImportError: libcuda.so.1: cannot open shared object file", "libcuda.so.1", "see `GPU"),
        (
            "ImportError: Python version mismatch: module was compiled for Python 3.8, but the "
            "interpreter version is incompatible: 3.10",
            f"built for another Python than {HERE}",
            "install it with this Python's own pip",
        ),
        ("ModuleNotFoundError: No module named 'tensorrt.tensorrt'", "another Python", "install"),
        ("ModuleNotFoundError: No module named 'tensorrt_bindings'", "tensorrt_bindings", "pip"),
        ("ImportError: /lib/libc.so.6: version `GLIBC_2.38' not found", "GLIBC_2.38", "take an"),
        ("ImportError: x.so: undefined symbol: _ZN8nvinfer", "different versions", "keep one"),
        ("RuntimeError: boom", "RuntimeError: boom", "pip install --force-reinstall tensorrt-cu12"),
    ],
)
def test_why_the_bindings_cannot_be_imported(
    machine: Machine, error: str, cause: str, mend: str
) -> None:
    machine.device(RTX4070)
    machine.installed("tensorrt", "10.9.0.34", {"error": error})
    machine.packages["tensorrt-cu12-bindings"] = "10.9.0.34"
    check = machine.check("TensorRT")
    assert check.status == "fail"
    assert check.detail.startswith("10.9.0.34, cannot be imported: ")
    assert cause in check.detail
    assert check.mend.startswith(mend)


def test_a_library_that_is_there_but_not_searched(machine: Machine) -> None:
    machine.device(RTX4070)
    folder = machine.file("opt/TensorRT-10.9/lib/libnvinfer.so.10.9.0").parent
    (folder / "libnvinfer.so.10").symlink_to("libnvinfer.so.10.9.0")
    error = {"error": "ImportError: libnvinfer.so.10: cannot open shared object file"}
    machine.installed("tensorrt", "10.9.0.34", error)
    assert machine.check("TensorRT").mend == f"export LD_LIBRARY_PATH={folder}:$LD_LIBRARY_PATH"


def test_bindings_that_crash(machine: Machine) -> None:
    machine.device(RTX4070)
    machine.installed("tensorrt", "10.9.0.34", {"lost": "crashed (SIGABRT)"})
    check = machine.check("TensorRT")
    assert check.status == "fail"
    assert "SIGABRT" in check.detail


@pytest.mark.parametrize(
    ("imported", "packages", "said"),
    [
        ("8.6.1", {"tensorrt": "8.6.1"}, "too old, 10.3 is needed"),
        ("10.3.0", {"tensorrt": "10.9.0.34"}, "there are two"),
        (
            "11.4.0.106",
            {"tensorrt-cu13-bindings": "11.4.0.106"},
            "is for CUDA 13, the driver knows 12",
        ),
        ("10.9.0.34", {"tensorrt-cu12-bindings": "10.9.0.34"}, ""),
        ("10.3.0", {"tensorrt": "10.3.0"}, ""),
    ],
)
def test_versions_that_do_not_belong_together(
    machine: Machine, imported: str, packages: dict[str, str], said: str
) -> None:
    machine.device(RTX4070)
    machine.installed("tensorrt", imported)
    del machine.packages["tensorrt"]
    machine.packages.update(packages)
    check = machine.check("TensorRT")
    assert check.status == ("warn" if said else "ok")
    assert said in check.detail


def test_two_libraries_in_one_import(machine: Machine) -> None:
    machine.device(RTX4070)
    both = ["/a/libnvinfer.so.10", "/b/libnvinfer.so.10.3.0", "/c/libtensorrt_rtx.so.1"]
    answer = {"version": "10.3.0", "file": "", "libraries": both}
    machine.installed("tensorrt", "10.3.0", answer)
    twice = machine.check("libnvinfer twice")
    assert (twice.status, twice.detail) == (
        "fail",
        f"one import loads 2 of libnvinfer: {both[0]}, {both[1]}",
    )


def test_bindings_without_the_module_over_them(machine: Machine) -> None:
    machine.packages["tensorrt-cu12-bindings"] = "10.9.0.34"
    for device, status in ((None, "warn"), (RTX4070, "fail")):
        if device:
            machine.device(device)
        assert machine.check("TensorRT") == Check(
            "TensorRT",
            status,
            "10.9.0.34 is half installed: there is no module tensorrt",
            "pip install --force-reinstall tensorrt-cu12",
        )


def test_a_folder_of_that_name_is_no_package(machine: Machine) -> None:
    (machine.site / "tensorrt").mkdir()
    assert not doctor_tensorrt.is_installed("tensorrt")
    machine.installed("tensorrt_rtx", "1.7.1.116")
    assert doctor_tensorrt.is_installed("tensorrt_rtx")


@pytest.mark.parametrize(
    ("python", "said", "mend"),
    [
        (
            "3.8",
            f"is installed for Python 3.8, this is {HERE}",
            "use that Python: python3.8 -m venv",
        ),
        (HERE, "which this Python does not look into", "make the environment anew: python"),
        ("3", "which this Python does not look into", "make the environment anew: python"),
    ],
)
def test_bindings_that_another_python_has(
    machine: Machine, python: str, said: str, mend: str
) -> None:
    machine.file(f"usr/lib/python{python}/dist-packages/tensorrt/__init__.py")
    check = machine.check("TensorRT")
    assert check.status == "warn"
    assert said in check.detail
    assert check.mend.startswith(mend)
    assert "--system-site-packages" in check.mend
