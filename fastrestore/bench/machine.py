"""The machine that a report is about: environment, GPU, board, models."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from fastrestore import jetson
from fastrestore.backend import find_model
from fastrestore.bench.nvml import Nvml
from fastrestore.environment import describe as describe_environment

# what must agree before two reports are called those of one machine
_SAME = {
    "cpu": "processor",
    "machine": "architecture",
    "usable_cores": "cores",
    "gpu.name": "GPU",
    "jetson.board": "board",
    "jetson.power_mode": "power mode",
}
_SHOWN = ("onnxruntime", "onnxruntime-gpu", "openvino")
_WITH_GPU = ("torch", "triton", "tensorrt", "tensorrt-rtx")


def describe(card: Nvml | None, models: Sequence[str] = ()) -> dict[str, Any]:
    """Describe the machine as JSON values, before anything is measured.

    Args:
        card: The GPU, if there is one.
        models: Names or files; their hashes go into the report.
    """
    env = describe_environment()
    env["gpu"] = None if card is None else card.describe()
    env["jetson"] = _board() if jetson.is_jetson() else None
    env["models"] = {m: hashlib.sha256(find_model(m).read_bytes()).hexdigest() for m in models}
    gpu = env["gpu"]
    if gpu and gpu["processes"]:  # this one has not begun yet
        env["warnings"].append(f"other processes compute on the GPU: {gpu['processes']}")
    if gpu and gpu["throttled_by"]:
        env["warnings"].append(f"the GPU is slowed down: {', '.join(gpu['throttled_by'])}")
    return env


def line(env: Mapping[str, Any]) -> str:
    """Name the machine in one line."""
    memory, load, clocks = env["memory_mb"]["total"], env["load_average"], env["clocks_mhz"]
    board, gpu = env.get("jetson"), env.get("gpu")
    most = clocks["max"] or clocks["now"]
    shown = (*_SHOWN, *(_WITH_GPU if gpu else ()))
    words = [
        env["cpu"] + (f" at {most[1] / 1e3:.1f} GHz" if most else ""),
        f"{env['usable_cores']} cores" + (" (virtual)" if env["is_virtual"] else ""),
        f"{memory / 1024:.0f} GB" if memory else "",
        f"{board['board']}, {board['power_mode'] or 'power mode unknown'}" if board else "",
        f"{gpu['name']}, driver {gpu['driver']}" if gpu else "",
        f"fastrestore {env['version']}",
        env["python"].replace("CPython", "Python"),
        *(f"{p} {env['packages'][p]}" for p in shown if env["packages"].get(p)),
        f"load {load[0]:.1f}" if load else "",
    ]
    return ", ".join(w for w in words if w)


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Say what two environments differ in that makes them two machines."""
    found = []
    for path, name in _SAME.items():
        one, other = _at(a, path), _at(b, path)
        if one != other:
            found.append(f"{name} {one or 'none'} and {other or 'none'}")
    return found


def _at(env: Mapping[str, Any], path: str) -> Any:
    value: Any = env
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _board() -> dict[str, Any]:
    release, mode, clocks = jetson.release(), jetson.power_mode(), jetson.gpu_clocks_mhz()
    name = None if mode is None else f"{mode.name or 'mode'} ({mode.number})"
    return {
        "board": jetson.board(),
        "l4t": release,
        "jetpack": jetson.jetpack(release),
        "power_mode": name,
        "gpu_clocks_mhz": None if clocks is None else list(clocks),
        "clocks_locked": None if clocks is None else clocks[0] == clocks[1],
    }
