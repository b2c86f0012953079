"""The PTX that ships in the package, for TensorRT and the CUDA driver.

Reads text only: the machine that builds an engine may have neither torch nor triton.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fastrestore.errors import ModelError

FOLDER = Path(__file__).parent / "ptx"
MANIFEST = "manifest.json"
_MEND = "install the package again, or run python -m fastrestore.kernels.compile ptx"


class Axis(NamedTuple):
    """One axis of a launch grid: `ceil(product of the sizes / per)` programs."""

    of: tuple[str, ...] = ()
    per: int = 1

    def at(self, sizes: Mapping[str, int]) -> int:
        """Return the number of programs."""
        return -(-math.prod(sizes[name] for name in self.of) // self.per)


@dataclass(frozen=True, slots=True)
class PluginKernel:
    """One kernel, as `cuLaunchKernel` or an ahead-of-time plugin needs it.

    Attributes:
        name: Of the launch; the file is `<name>.ptx`.
        entry: Symbol in the PTX.
        ptx: The text.
        sha256: Of the text.
        block: Threads along x; y and z are 1.
        shared: Dynamic shared memory in bytes, at most 48 KiB.
        grid: Axes x, y, z.
        arguments: Name and type in order: input pointers, int32 scalars, output pointers.
        divisible: Arguments that must be multiples of 16 (pointers: aligned to 16 bytes).
        constants: What was compiled in.
        triton: Version of the compiler.
        ptx_version: As in the text, `8.0`.
        target: Oldest architecture, `sm_80`.
    """

    name: str
    entry: str
    ptx: str
    sha256: str
    block: int
    shared: int
    grid: tuple[Axis, Axis, Axis]
    arguments: Mapping[str, str]
    divisible: tuple[str, ...]
    constants: Mapping[str, Any]
    triton: str
    ptx_version: str
    target: str


def digest(ptx: str) -> str:
    """Return the SHA-256 of a PTX text."""
    return hashlib.sha256(ptx.encode()).hexdigest()


def read_manifest(folder: Path = FOLDER) -> tuple[PluginKernel, ...]:
    """Read every shipped kernel and check its bytes.

    Raises:
        ModelError: The manifest or a file is absent, damaged, or not what the manifest says.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        return tuple(_read(folder, manifest, kernel) for kernel in manifest["kernels"])
    except OSError as e:
        raise ModelError(f"{e.filename}: cannot be read ({e.strerror}); {_MEND}") from e
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        reason = " ".join(str(e).split())
        raise ModelError(f"{path}: damaged ({type(e).__name__}: {reason}); {_MEND}") from e


def _read(folder: Path, manifest: dict[str, Any], kernel: dict[str, Any]) -> PluginKernel:
    """Read one kernel."""
    path = folder / f"{kernel['name']}.ptx"
    ptx = path.read_text(encoding="utf-8")
    if digest(ptx) != kernel["sha256"]:
        raise ModelError(f"{path}: is not the file that {MANIFEST} names; {_MEND}")
    x, y, z = (Axis(tuple(axis["of"]), int(axis["per"])) for axis in kernel["grid"])
    return PluginKernel(
        name=kernel["name"],
        entry=kernel["entry"],
        ptx=ptx,
        sha256=kernel["sha256"],
        block=int(kernel["block"]),
        shared=int(kernel["shared"]),
        grid=(x, y, z),
        arguments={argument["name"]: argument["type"] for argument in kernel["arguments"]},
        divisible=tuple(kernel["divisible"]),
        constants=kernel["constants"],
        triton=manifest["triton"],
        ptx_version=manifest["ptx_version"],
        target=manifest["target"],
    )
