"""What a figure was measured on: versions, processor, limits, load. Imports none of what it names.

Everything is read from files and package metadata, so that describing a machine neither runs a
program nor slows the measurement that follows. What a system does not tell is None.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from fastrestore._version import __version__

PROC = Path("/proc")
SYS = Path("/sys")
CGROUP = Path("/sys/fs/cgroup")
PACKAGES = (
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "torch",
    "triton",
    "tensorrt",
    "tensorrt-rtx",
    "av",
    "pillow",
    "opencv-python-headless",
    "opencv-python",
    "opencv-contrib-python-headless",
    "opencv-contrib-python",
    "scikit-image",
)
_UNLIMITED_BYTES = 1 << 60  # cgroup v1 writes "no limit" as a huge number


def describe() -> dict[str, Any]:
    """Describe this machine and installation as plain JSON values.

    Call it before a measurement: the load average then tells what else was running.

    Returns:
        `version`, `commit` (None outside a checkout; local changes are not seen), `python`, `os`,
        `machine`, `cpu`, `logical_cores`, `usable_cores`, `load_average` (1, 5, 15 minutes),
        `memory_mb` (total, available, limit, swap_used), `clocks_mhz` (now, max, governor),
        `temperatures_c`, `is_virtual`, `packages` (name to version or None) and `warnings`:
        sentences on what makes a figure from here doubtful.
    """
    cores = usable_cores()
    load = load_average()
    memory = memory_mb()
    packages = {name: package_version(name) for name in PACKAGES}
    return {
        "version": __version__,
        "commit": commit(Path(__file__).resolve().parents[1]),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "os": platform.platform(),
        "machine": platform.machine(),
        "cpu": cpu_model(),
        "logical_cores": os.cpu_count(),
        "usable_cores": cores,
        "load_average": load,
        "memory_mb": memory,
        "clocks_mhz": clocks_mhz(),
        "temperatures_c": temperatures_c(),
        "is_virtual": is_virtual(),
        "packages": packages,
        "warnings": list(_warnings(cores, load, memory, packages)),
    }


def is_busy(load: float, cores: int) -> bool:
    """Say whether a one-minute load average makes wall times on that many cores doubtful."""
    return load > cores / 2


def _warnings(
    cores: int,
    load: list[float] | None,
    memory: dict[str, int | None],
    packages: dict[str, str | None],
) -> Iterator[str]:
    if load is not None and is_busy(load[0], cores):
        yield f"load average {load[0]:.1f} on {cores} cores: wall times are not to be trusted"
    if packages["onnxruntime"] and packages["onnxruntime-gpu"]:
        yield "onnxruntime and onnxruntime-gpu are both installed and overwrite each other"
    if memory["swap_used"]:
        yield f"{memory['swap_used']} MB of swap in use: times may contain disk access"


def package_version(distribution: str) -> str | None:
    """Return the installed version of a distribution, None if it is absent."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def usable_cores(proc: Path = PROC, cgroup: Path = CGROUP) -> int:
    """Count the cores that this process may use, at least 1.

    The smaller of the processor affinity and the container's quota, rounded down: a thread more
    than the quota covers is paid for with pauses of all threads.

    Args:
        proc: Where the kernel's process files are.
        cgroup: Where the control groups are mounted.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, int(min([cores, *_cpu_quotas(proc, cgroup)])))


def _cpu_quotas(proc: Path, cgroup: Path) -> Iterator[float]:
    """Yield the quota in cores of every group above this process that has one."""
    for folder in _groups("", proc, cgroup):
        fields = (_read(folder / "cpu.max") or "").split()
        if len(fields) == 2 and fields[0] != "max":
            yield int(fields[0]) / int(fields[1])
    for folder in _groups("cpu", proc, cgroup):
        quota = _read_int(folder / "cpu.cfs_quota_us")
        period = _read_int(folder / "cpu.cfs_period_us")
        if quota and period and quota > 0:
            yield quota / period


def _groups(controller: str, proc: Path, cgroup: Path) -> Iterator[Path]:
    """Yield the folders of this process's control group and of all above it.

    Args:
        controller: A version 1 controller, or "" for the version 2 hierarchy.
        proc: Where the kernel's process files are.
        cgroup: Where the control groups are mounted.
    """
    for line in (_read(proc / "self" / "cgroup") or "").splitlines():
        _, _, rest = line.partition(":")  # number:controllers:path
        names, _, path = rest.partition(":")
        if controller not in names.split(","):
            continue
        # Inside a container the path may be the host's: what does not exist is passed over.
        for mount in (names, controller) if controller else ("", "unified"):
            parts = Path(path.lstrip("/")).parts
            for i in range(len(parts), -1, -1):
                yield cgroup.joinpath(mount, *parts[:i])


def memory_mb(proc: Path = PROC, cgroup: Path = CGROUP) -> dict[str, int | None]:
    """Return `total`, `available`, `limit` (of the container) and `swap_used` in MB.

    Args:
        proc: Where the kernel's process files are.
        cgroup: Where the control groups are mounted.
    """
    kilobytes: dict[str, int] = {}
    for line in (_read(proc / "meminfo") or "").splitlines():
        key, _, value = line.partition(":")
        number = value.split()[0] if value.split() else ""
        if number.isdigit():
            kilobytes[key] = int(number)
    total, available = kilobytes.get("MemTotal"), kilobytes.get("MemAvailable")
    swap_total, swap_free = kilobytes.get("SwapTotal"), kilobytes.get("SwapFree")
    swap = None if swap_total is None or swap_free is None else swap_total - swap_free
    limits = [
        limit
        for controller, name in (("", "memory.max"), ("memory", "memory.limit_in_bytes"))
        for folder in _groups(controller, proc, cgroup)
        if (limit := _read_int(folder / name)) is not None and limit < _UNLIMITED_BYTES
    ]
    return {
        "total": None if total is None else total // 1024,
        "available": None if available is None else available // 1024,
        "limit": min(limits) >> 20 if limits else None,
        "swap_used": None if swap is None else swap // 1024,
    }


def has_cuda_device() -> bool:
    """Ask NVIDIA's driver, not torch, whether there is a device that this process may use."""
    try:
        return bool(ctypes.CDLL("libcuda.so.1").cuInit(0) == 0)
    except OSError:  # no driver
        return False


def load_average() -> list[float] | None:
    """Return the load of the last 1, 5 and 15 minutes, None where the system has no such figure."""
    if not hasattr(os, "getloadavg"):
        return None
    try:
        return [round(v, 2) for v in os.getloadavg()]
    except OSError:
        return None


def cpu_model(proc: Path = PROC) -> str:
    """Return the processor's name.

    Args:
        proc: Where the kernel's process files are.
    """
    lines = (_read(proc / "cpuinfo") or "").splitlines()
    fields = [(k.strip(), v.strip()) for k, _, v in (line.partition(":") for line in lines)]
    for wanted in ("model name", "Model", "Hardware"):  # x86; boards with ARM cores
        for key, value in fields:
            if key == wanted and value:
                return value
    return platform.processor() or platform.machine() or sys.platform


def clocks_mhz(sys_: Path = SYS, proc: Path = PROC) -> dict[str, Any]:
    """Return `now` and `max` (of the slowest and the fastest core, in MHz) and the `governor`.

    Args:
        sys_: Where the kernel's device files are.
        proc: Where its process files are; they name a clock where the others do not.
    """
    folders = sorted((sys_ / "devices/system/cpu").glob("cpu[0-9]*/cpufreq"))
    now = _khz(folders, "scaling_cur_freq")
    if not now:
        lines = (line.partition(":") for line in (_read(proc / "cpuinfo") or "").splitlines())
        texts = [value.strip() for name, _, value in lines if name.strip() == "cpu MHz"]
        now = [float(t) for t in texts if t.replace(".", "", 1).isdigit()]
    most = _khz(folders, "cpuinfo_max_freq")
    governors = {(_read(f / "scaling_governor") or "").strip() for f in folders} - {""}
    return {
        "now": [min(now), max(now)] if now else None,
        "max": [min(most), max(most)] if most else None,
        "governor": ", ".join(sorted(governors)) or None,
    }


def _khz(folders: Iterable[Path], name: str) -> list[float]:
    found = (_read_int(folder / name) for folder in folders)
    return [round(khz / 1e3, 1) for khz in found if khz]


def temperatures_c(sys_: Path = SYS) -> dict[str, float]:
    """Return the temperature of every thermal zone that tells one.

    Args:
        sys_: Where the kernel's device files are.
    """
    found = {}
    for folder in sorted((sys_ / "class/thermal").glob("thermal_zone*")):
        name, thousandths = (_read(folder / "type") or "").strip(), _read_int(folder / "temp")
        if name and thousandths is not None and thousandths > -200_000:  # -256 C: switched off
            found[name] = thousandths / 1e3
    return found


def is_virtual(proc: Path = PROC) -> bool:
    """Return whether this is a virtual machine: others on the host take time unseen."""
    lines = (_read(proc / "cpuinfo") or "").splitlines()
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return "hypervisor" in flags.split()


def commit(root: Path) -> str | None:
    """Return the commit that a checkout stands at, read from its files without running git.

    Args:
        root: The checkout's top folder; folders above it are not searched, since an installed
            package may lie inside somebody else's checkout.

    Returns:
        The hexadecimal name, or None: no checkout, no commit yet, or a form not known here.
    """
    git = root / ".git"
    link = _read(git) if git.is_file() else None
    if link and link.startswith("gitdir:"):  # a linked work tree or a submodule
        git = root / link.removeprefix("gitdir:").strip()
    head = (_read(git / "HEAD") or "").strip()
    if not head.startswith("ref:"):
        return _hex(head)
    ref = head.removeprefix("ref:").strip()
    common = git / (_read(git / "commondir") or "").strip()
    packed = (_read(common / "packed-refs") or "").splitlines()
    names = (line.split() for line in packed)
    in_pack = (fields[0] for fields in names if len(fields) == 2 and fields[1] == ref)
    return _first_hex((_read(git / ref), _read(common / ref), *in_pack))


def _first_hex(texts: Iterable[str | None]) -> str | None:
    return next((found for text in texts if (found := _hex(text or ""))), None)


def _hex(text: str) -> str | None:
    text = text.strip()
    is_name = len(text) in (40, 64) and set(text) <= set("0123456789abcdef")
    return text if is_name else None


def _read(path: Path) -> str | None:
    """Return a small text file, None where there is none or it may not be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _read_int(path: Path) -> int | None:
    text = (_read(path) or "").strip()
    return int(text) if text.lstrip("-").isdigit() else None
