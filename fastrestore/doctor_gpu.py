"""What the doctor finds out about NVIDIA's driver, its devices and the CUDA bindings.

The driver is asked in another process. A machine without a device gets one line.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastrestore import jetson
from fastrestore.cuda_toolkit import Toolkit, toolkit
from fastrestore.doctor_check import Check
from fastrestore.environment import package_version
from fastrestore.probe import ROOT, ask_native, read

NVIDIA = "0x10de"  # the vendor's number on the PCI bus
OLDEST = (7, 5)  # compute capability that TensorRT 10.3 to 11 support
NODES = (
    "dev/nvidiactl",
    "dev/nvidia0",
    "dev/nvidia-uvm",
    "dev/nvmap",
    "dev/nvhost-gpu",
    "dev/nvhost-ctrl-gpu",
    "dev/nvgpu/igpu0/ctrl",
)
# what cuInit answers -> what that means, how to mend it
REFUSALS = {
    34: ("it is a stub for linking", "take the folder `stubs` out of LD_LIBRARY_PATH"),
    100: ("it finds no device", "look for the card in `lspci` and for its driver's words in dmesg"),
    101: ("CUDA_VISIBLE_DEVICES names no device", "unset CUDA_VISIBLE_DEVICES"),
    304: ("the system refuses it", "restart the machine, or give the container its devices"),
    802: (
        "it is not ready yet",
        "start the fabric manager: `systemctl start nvidia-fabricmanager`",
    ),
    803: ("the loaded driver and its library are of different versions", "restart the machine"),
    804: ("its compatibility library is not for this card", "install a newer driver"),
    999: ("it gives no reason", "restart the machine; in a container give it all devices"),
}


@dataclass(frozen=True, slots=True)
class Gpu:
    """What the driver says.

    Attributes:
        devices: What `native.cuda` tells of each.
        cuda: The newest CUDA version that the driver knows, as (12, 6); None without a driver.
        code: What cuInit answered; None if it could not be asked.
        problem: Why it could not, a few words.
        is_lost: It crashed or never answered: nothing else that loads it should be tried.
    """

    devices: tuple[dict[str, Any], ...] = ()
    cuda: tuple[int, int] | None = None
    code: int | None = None
    problem: str = ""
    is_lost: bool = False


def look() -> Gpu:
    """Ask the driver, in another process."""
    facts = ask_native("cuda")
    if "lost" in facts:
        return Gpu(problem=facts["lost"], is_lost=True)
    if "error" in facts:
        return Gpu(problem=facts["error"])
    version = divmod(facts["version"] // 10, 100)
    return Gpu(tuple(facts["devices"]), version, facts["code"])


def driver(gpu: Gpu, root: Path = ROOT) -> Iterator[Check]:
    """Check the driver, and name every device."""
    loaded = jetson.driver_version(root)
    if gpu.is_lost:
        mend = "restart the machine; if it stays so, reinstall NVIDIA's driver"
        yield Check("GPU driver", "fail", f"asked for its devices: {gpu.problem}", mend)
    elif gpu.code is None:
        yield _no_library(loaded, root)
    elif gpu.code or not gpu.devices:
        yield _refusal(gpu, loaded, root)
    else:
        known = f"CUDA {_dotted(gpu.cuda)}"
        yield Check("GPU driver", "ok", f"{loaded}, {known}" if loaded else known)
    for index, device in enumerate(gpu.devices):
        memory = f"{device['total_mb']} MB" + (" shared" if device["is_integrated"] else "")
        sm = tuple(device["sm"])
        old = ", too old for TensorRT" if sm < OLDEST else ""
        detail = f"{device['name']}, compute capability {_dotted(sm)}, {memory}{old}"
        yield Check(f"GPU {index}", "ok", detail)


def bindings(gpu: Gpu, has_runtime: bool, root: Path = ROOT) -> Iterator[Check]:
    """Check what reaches CUDA from Python, where there is a device.

    Args:
        gpu: From `look`.
        has_runtime: Whether TensorRT or TensorRT-RTX is installed, which cannot do without.
        root: Where the file system begins.
    """
    if not gpu.devices:
        return
    tools = toolkit(root)
    if tools.folder is not None:
        detail = f"{tools.version or 'unknown version'} in {tools.folder}"
        yield Check("CUDA toolkit", "ok", f"{detail}; needed only to build pycuda")
    versions = {name: package_version(name) for name in ("cuda-bindings", "pycuda")}
    if versions["cuda-bindings"]:
        yield _cuda_bindings(versions["cuda-bindings"], gpu)
    if versions["pycuda"]:
        yield _pycuda(versions["pycuda"], tools)
    if any(versions.values()):
        return
    major = gpu.cuda[0] if gpu.cuda else 0
    wanted = f"pip install {_matching(major)}"
    if not has_runtime:
        yield Check("CUDA binding", "ok", f"not installed; engines need one: {wanted}")
        return
    yield Check("CUDA binding", "warn", "not installed: engines cannot run", wanted)
    if tools.pitfall:
        detail = f"not installed, and cannot be built here: {tools.pitfall}"
        yield Check("pycuda", "warn", detail, tools.mend)


def _no_library(loaded: str | None, root: Path) -> Check:
    """Say why there may be no libcuda."""
    board = jetson.is_jetson(root)
    if jetson.is_container(root) and (board or loaded):
        flags = "--runtime nvidia" if board else "--gpus all"
        detail = "a GPU is here, but the container has no libcuda.so.1"
        return Check("GPU driver", "warn", detail, f"start the container with `{flags}`")
    if board:
        mend = "sudo apt install --reinstall nvidia-l4t-cuda"
        return Check("GPU driver", "warn", "libcuda.so.1 is not found on this board", mend)
    if loaded:
        detail = f"{loaded} is loaded, but its library libcuda.so.1 is not found"
        mend = f"install the compute library of driver {loaded} (libnvidia-compute on Ubuntu)"
        return Check("GPU driver", "warn", detail, mend)
    if _has_card(root):
        detail = "an NVIDIA card is here, but not its driver: the processor does the work"
        mend = "install NVIDIA's driver (Ubuntu: `sudo ubuntu-drivers install`) and restart"
        return Check("GPU driver", "warn", detail, mend)
    return Check("GPU", "ok", "none of NVIDIA's; the processor does the work")


def _refusal(gpu: Gpu, loaded: str | None, root: Path) -> Check:
    """Say why a driver that is installed shows no device."""
    name = f"driver {loaded}" if loaded else "the driver"
    board, card = jetson.is_jetson(root), _has_card(root)
    is_told_elsewhere = os.name != "posix" or (root / "dev/dxg").exists()  # Windows, and its Linux
    if not (loaded or board or card or is_told_elsewhere):
        return Check("GPU", "ok", f"{name} is installed, but no device is here")
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if gpu.code in (0, 100, 101) and hidden is not None:
        detail = f"{name} shows no device with CUDA_VISIBLE_DEVICES={hidden!r}"
        return Check("GPU driver", "warn", detail, "unset CUDA_VISIBLE_DEVICES")
    closed = [n for n in NODES if (root / n).exists() and not _is_open(root / n)]
    if closed:
        detail = f"{name} does not start: this user may not use /{closed[0]}"
        mend = 'sudo usermod -aG video,render "$USER", then log in anew'
        return Check("GPU driver", "fail", detail, mend)
    if card and not loaded and not board:
        if jetson.is_container(root):
            detail, mend = "a card is here, the container has none", "start it with `--gpus all`"
        else:
            detail = "a card is here, but the kernel has not loaded its driver"
            mend = "restart the machine; Secure Boot may refuse a driver that is not signed"
        return Check("GPU driver", "warn", detail, mend)
    code = gpu.code or 100
    reason, mend = REFUSALS.get(code, (f"cuInit answers {code}", "restart the machine"))
    return Check("GPU driver", "fail", f"{name} does not start: {reason} ({code})", mend)


def _cuda_bindings(version: str, gpu: Gpu) -> Check:
    facts = ask_native("import:cuda.bindings.driver")
    problem = facts.get("error") or facts.get("lost")
    wanted = f"pip install --force-reinstall {_matching(gpu.cuda[0] if gpu.cuda else 0)}"
    if problem:
        return Check("cuda-bindings", "fail", f"{version}, cannot be imported: {problem}", wanted)
    if gpu.cuda and int(version.partition(".")[0]) > gpu.cuda[0]:
        detail = f"{version} is for a newer driver than this one with CUDA {_dotted(gpu.cuda)}"
        return Check("cuda-bindings", "warn", detail, wanted)
    return Check("cuda-bindings", "ok", version)


def _matching(cuda_major: int) -> str:
    """Return what to ask pip for: the newest binding that the driver can serve."""
    return f"'cuda-bindings<{cuda_major + 1}'" if 0 < cuda_major < 13 else "cuda-bindings"


def _pycuda(version: str, tools: Toolkit) -> Check:
    facts = ask_native("import:pycuda.driver")
    problem = facts.get("error") or facts.get("lost")
    if not problem:
        return Check("pycuda", "ok", f"{version}; cuda-bindings is tried first")
    anew = "pip install --force-reinstall --no-cache-dir --no-binary pycuda pycuda"
    if tools.pitfall:  # it would not get better by being built again
        problem = f"{problem}; {tools.pitfall}"
        anew = f"{tools.mend}, then {anew}"
    return Check("pycuda", "fail", f"{version}, cannot be imported: {problem}", anew)


def _is_open(path: Path) -> bool:
    return os.access(path, os.R_OK | os.W_OK)


def _has_card(root: Path) -> bool:
    """Return whether a display or compute card of NVIDIA's is on the PCI bus."""
    return any(
        read(folder / "vendor").strip() == NVIDIA and read(folder / "class").startswith("0x03")
        for folder in (root / "sys/bus/pci/devices").glob("*")
    )


def _dotted(numbers: tuple[int, ...] | None) -> str:
    return ".".join(map(str, numbers or ()))
