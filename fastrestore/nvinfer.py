"""Every TensorRT library on this machine. Found by name; none is loaded."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fastrestore.engine_record import Product
from fastrestore.probe import ROOT, ask

STEMS: dict[Product, str] = {"tensorrt": "nvinfer", "tensorrt_rtx": "tensorrt_rtx"}
# besides what the loader knows: where packages, archives and containers put it
PLACES = (
    "usr/lib/*-linux-gnu",
    "usr/lib64",
    "usr/lib",
    "usr/local/lib",
    "usr/local/tensorrt*/lib",
    "usr/local/TensorRT*/lib",
    "opt/tensorrt*/lib",
    "opt/TensorRT*/lib",
)
_IN_CACHE = re.compile(r"=>\s*(/.*\S)")


@dataclass(frozen=True, slots=True)
class Library:
    """One file, however many names it has.

    Attributes:
        path: Of the file itself.
        version: As its name or the package around it tells; empty if neither does.
    """

    path: Path
    version: str

    def agrees(self, other: Library) -> bool:
        """Return whether both may be of the same version, as far as it is known."""
        pairs = zip(self.version.split("."), other.version.split("."), strict=False)
        return bool(self.version and other.version) and all(a == b for a, b in pairs)


def libraries(product: Product, root: Path = ROOT) -> list[Library]:
    """Return every library of a product, in the order in which programs would find them.

    Args:
        product: Whose.
        root: Where the file system begins.
    """
    stem = STEMS[product]
    is_it = re.compile(rf"lib{stem}\.so([.\d]*)|{stem}_[\d_]+\.dll", re.IGNORECASE)
    found: dict[Path, Library] = {}
    for path in _candidates(stem, root):
        if is_it.fullmatch(path.name):
            real = path.resolve()
            if real.is_file() and real.parent.name != "stubs":
                found[real] = Library(real, _version(real))
    return list(found.values())


def _candidates(stem: str, root: Path) -> Iterator[Path]:
    """Yield what may be a library, also twice."""
    search = os.environ.get("PATH" if sys.platform == "win32" else "LD_LIBRARY_PATH", "")
    named = [Path(p) for p in search.split(os.pathsep) if p]
    packages = [f for p in sys.path for f in sorted(Path(p or ".").glob("tensorrt*_libs"))]
    conda = os.environ.get("CONDA_PREFIX")
    for folder in [*packages, *named, *([Path(conda) / "lib"] if conda else [])]:
        yield from sorted(folder.glob(f"*{stem}*"))
    if root == ROOT:  # the loader's list is of this system
        for line in ask(["ldconfig", "-p"]).text.splitlines():
            match = _IN_CACHE.search(line)
            if match:
                yield Path(match[1])
    for place in PLACES:
        for folder in sorted(root.glob(place)):
            yield from sorted(folder.glob(f"lib{stem}.so*"))


def _version(path: Path) -> str:
    """Return the version of a library's file: `10.3.0` of `libnvinfer.so.10.3.0`."""
    told = path.name.partition(".so.")[2]
    if "." in told:
        return told
    # pip's package names its file for its major version alone
    for info in path.parent.parent.glob("tensorrt*_libs-*.dist-info"):
        name, _, version = info.name.removesuffix(".dist-info").rpartition("-")
        if ("_rtx" in name) == ("_rtx" in path.name):
            return version
    return told
