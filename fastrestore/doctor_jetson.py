"""What the doctor finds out about a Jetson: its software, its power mode, clocks and memory.

Written from NVIDIA's documents and files of such boards; never run on one yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fastrestore import jetson
from fastrestore.doctor_check import Check
from fastrestore.environment import memory_mb
from fastrestore.probe import ROOT

BUILD_MB = 2048  # a build of a small network takes 1 to 2 GB, the GPU's share included


def board(root: Path = ROOT) -> Iterator[Check]:
    """Check a Jetson; nothing on other machines."""
    if not jetson.is_jetson(root):
        return
    yield _software(root)
    yield _power(root)
    yield _clocks(root)
    yield _memory(root)


def _software(root: Path) -> Check:
    l4t = jetson.release(root)
    version = jetson.jetpack(l4t)
    words = [jetson.board(root) or "unknown board"]
    words += [f"L4T {l4t}"] if l4t else []
    words += [f"JetPack {version}"] if version else []
    detail = ", ".join(words)
    if l4t and tuple(int(n) for n in l4t.split(".")[:2]) < jetson.OLDEST_L4T:
        mend = "install JetPack 6.2 or newer; until then ONNX Runtime is used"
        return Check("Jetson", "warn", f"{detail}: its TensorRT is older than 10.3", mend)
    return Check("Jetson", "ok", detail)


def _power(root: Path) -> Check:
    mode = jetson.power_mode(root)
    if mode is None:
        where = "to this container" if jetson.is_container(root) else "to this user"
        return Check("power mode", "ok", f"not told {where}; `sudo nvpmodel -q` does")
    detail = f"{mode.name or 'unknown name'} ({mode.number})"
    best = [m for m in jetson.power_modes(root) if m.name.startswith("MAXN")]
    if not best or mode.number in (m.number for m in best):
        return Check("power mode", "ok", detail)
    fastest = max(best, key=lambda m: len(m.name))  # MAXN_SUPER where there is one
    mend = f"sudo nvpmodel -m {fastest.number} if the power supply allows, then build engines anew"
    return Check("power mode", "warn", f"{detail}, slower than {fastest.name}", mend)


def _clocks(root: Path) -> Check:
    clocks = jetson.gpu_clocks_mhz(root)
    if clocks is None:
        return Check("clocks", "ok", "not told to this user; `sudo jetson_clocks --show` does")
    low, high = clocks
    if low == high:
        return Check("clocks", "ok", f"GPU locked at {high} MHz")
    detail = f"GPU {low} to {high} MHz, not locked; `sudo jetson_clocks` before measuring"
    return Check("clocks", "ok", detail)


def _memory(root: Path) -> Check:
    memory = memory_mb(root / "proc", root / "sys/fs/cgroup")
    total, available = memory["total"], memory["available"]
    swap, is_zram = jetson.swap_mb(root)
    told = f"{swap} MB of swap" + (", all of it compressed memory" if is_zram else "")
    if total is None or available is None:
        return Check("shared memory", "ok", f"not told by this system; {told}")
    detail = f"{available} of {total} MB free for processor and GPU, {told if swap else 'no swap'}"
    if available < BUILD_MB:
        mend = "close other programs, or the desktop: sudo systemctl isolate multi-user.target"
        return Check("shared memory", "warn", f"{detail}: little for a build", mend)
    return Check("shared memory", "ok", detail)
