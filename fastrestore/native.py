"""What native libraries say of themselves; run by `probe.ask_native` in a process of its own.

    native.py cuda            the driver and its devices
    native.py engines         which engines of the cache fit here; loads a CUDA binding
    native.py import:MODULE   whether a module can be imported, and what it loaded

Prints one JSON object. Nothing of fastrestore is imported but for `engines`, so that a child that
asks for something else starts at once.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

_ATTRIBUTES = {"major": 75, "minor": 76, "integrated": 18}  # CUdevice_attribute
_RUNTIME = re.compile(r"lib(?:nvinfer|tensorrt_rtx)\.so[.\d]*")


def cuda() -> dict[str, Any]:
    """Return `code` of cuInit, the driver's CUDA `version` as 12060, and `devices`."""
    try:
        lib = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError as e:
        return {"error": str(e)}
    number = ctypes.c_int()
    lib.cuDriverGetVersion(ctypes.byref(number))
    version = number.value
    code = lib.cuInit(0)
    if code == 0:
        code = lib.cuDeviceGetCount(ctypes.byref(number))
    count = number.value if code == 0 else 0
    return {"code": code, "version": version, "devices": [_device(lib, i) for i in range(count)]}


def _device(lib: Any, index: int) -> dict[str, Any]:
    handle, number = ctypes.c_int(), ctypes.c_int()
    name, total = ctypes.create_string_buffer(256), ctypes.c_size_t()
    lib.cuDeviceGet(ctypes.byref(handle), index)
    lib.cuDeviceGetName(name, len(name), handle)
    lib.cuDeviceTotalMem_v2(ctypes.byref(total), handle)
    found = {}
    for what, attribute in _ATTRIBUTES.items():
        lib.cuDeviceGetAttribute(ctypes.byref(number), attribute, handle)
        found[what] = number.value
    return {
        "name": name.value.decode(errors="replace"),
        "sm": [found["major"], found["minor"]],
        "is_integrated": bool(found["integrated"]),
        "total_mb": total.value >> 20,
    }


def module(name: str) -> dict[str, Any]:
    """Import a module; return its `version`, its `file`, and the TensorRT `libraries` in use."""
    try:
        found = importlib.import_module(name)
    except Exception as e:  # a broken library can raise anything, and to say so is the task
        text = " ".join(str(e).split())
        return {"error": f"{type(e).__name__}: {text}"}
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        maps = ""
    # address, rights, offset, device, inode, and of a file its path
    loaded = {fields[5] for line in maps.splitlines() if len(fields := line.split(maxsplit=5)) == 6}
    return {
        "version": getattr(found, "__version__", None),
        "file": getattr(found, "__file__", None),
        "libraries": sorted(p for p in loaded if _RUNTIME.fullmatch(Path(p).name)),
    }


def engines() -> dict[str, Any]:
    """Return, by path, whether each engine `fits` here (None = not known) and why it is `stale`."""
    from fastrestore.engine_cache import entries
    from fastrestore.engine_here import fits_here, stale
    from fastrestore.errors import FastRestoreError

    told: dict[str, Any] = {}
    try:
        for entry in entries():
            fit = fits_here(entry)
            told[str(entry.path)] = {"fits": fit.fits, "device": fit.device, "stale": stale(entry)}
    except FastRestoreError as e:
        return {"error": str(e)}
    return {"engines": told}


def main(what: str) -> None:
    """Print one answer."""
    if what == "cuda":
        facts = cuda()
    elif what == "engines":
        facts = engines()
    else:
        facts = module(what.removeprefix("import:"))
    sys.stdout.write("\n" + json.dumps(facts) + "\n")


if __name__ == "__main__":
    main(sys.argv[2])
