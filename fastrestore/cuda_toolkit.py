"""Where CUDA's compiler is, and what keeps pycuda from being built with it.

pycuda comes as sources. Its build takes the first `nvcc` on PATH and looks for `cuda.h` in the
folder `include` beside that one's folder: a link or a script elsewhere leads it astray.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from fastrestore import jetson
from fastrestore.probe import ROOT, ask, find

HOMES = ("CUDA_HOME", "CUDA_PATH", "CUDA_ROOT")
_RELEASE = re.compile(r"release (\d+\.\d+)")


@dataclass(frozen=True, slots=True)
class Toolkit:
    """CUDA's compiler and headers.

    Attributes:
        folder: Of the toolkit; None if none was found.
        version: As nvcc tells it; None if it does not.
        pitfall: What stops a build of pycuda; empty if nothing that is known does.
        mend: What to do then.
    """

    folder: Path | None
    version: str | None
    pitfall: str = ""
    mend: str = ""


def toolkit(root: Path = ROOT) -> Toolkit:
    """Find the toolkit that a build would use, or should."""
    on_path = find("nvcc")
    beside = None if on_path is None else Path(on_path).parent.parent
    if beside is not None and _has_header(beside):
        return Toolkit(beside, _version(on_path))
    folders = [f for f in _folders(root, on_path) if (f / "bin" / "nvcc").exists()]
    folder = next((f for f in folders if _has_header(f)), None)
    if folder is None:
        if not folders and on_path is None:
            return Toolkit(None, None, "no CUDA compiler (nvcc) is found", _install(root))
        compiler = on_path or str(folders[0] / "bin" / "nvcc")
        pitfall = f"cuda.h is not found beside {compiler}"
        return Toolkit(None, _version(compiler), pitfall, _install(root))
    version = _version(str(folder / "bin" / "nvcc"))
    if on_path is None:
        return Toolkit(folder, version, f"nvcc in {folder}/bin is not on PATH", _export(folder))
    kind = "a link" if Path(on_path).is_symlink() else "outside its toolkit"
    pitfall = f"{on_path} is {kind}, and pycuda looks for cuda.h in {beside}/include"
    return Toolkit(folder, version, pitfall, _export(folder))


def _folders(root: Path, on_path: str | None) -> list[Path]:
    """Return where a toolkit may be, what was named first."""
    named = [Path(v) for name in HOMES if (v := os.environ.get(name))]
    real = [] if on_path is None else [Path(on_path).resolve().parent.parent]
    newest = sorted((root / "usr/local").glob("cuda-*"), key=_numbers, reverse=True)
    return [*named, *real, root / "usr/local/cuda", *newest]


def _numbers(folder: Path) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", folder.name)]


def _has_header(folder: Path) -> bool:
    return (folder / "include" / "cuda.h").exists()


def _version(nvcc: str | None) -> str | None:
    found = _RELEASE.search(ask([nvcc, "--version"]).text) if nvcc else None
    return found[1] if found else None


def _export(folder: Path) -> str:
    return f"export PATH={folder}/bin:$PATH CPATH={folder}/include LIBRARY_PATH={folder}/lib64"


def _install(root: Path) -> str:
    if jetson.is_jetson(root):
        return "sudo apt install nvidia-cuda-dev, or take cuda-bindings, which is not built"
    return "install the CUDA toolkit, or take cuda-bindings, which is not built"
