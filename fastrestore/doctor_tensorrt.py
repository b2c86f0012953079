"""What the doctor finds out about TensorRT and TensorRT-RTX: their libraries, their bindings.

The bindings are imported in another process: a library of another system may take Python down.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastrestore import jetson
from fastrestore.doctor_check import Check, Status
from fastrestore.doctor_gpu import Gpu
from fastrestore.engine_here import DISTRIBUTIONS, product_version
from fastrestore.engine_record import TITLES, Product
from fastrestore.environment import package_version
from fastrestore.nvinfer import Library, libraries
from fastrestore.probe import ROOT, ask_native

OLDEST = (10, 3)
NO_RTX = {(8, 7), (9, 0), (10, 0), (10, 1), (10, 3), (11, 0)}  # Jetsons and data-centre cards
HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"
VENV = f"python{HERE} -m venv --system-site-packages VENV"
EXTRAS: dict[Product, str] = {"tensorrt": "tensorrt", "tensorrt_rtx": "rtx"}
_MISSING = re.compile(r"(lib[\w+-]+\.so[.\d]*): (?:cannot open shared object|file too short)")
_OTHER_PYTHON = re.compile(r"Python version mismatch|undefined symbol: _?Py|\.tensorrt'$")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a product is looked for.

    Attributes:
        product: Which.
        gpu: From `doctor_gpu.look`.
        found: All its libraries.
        root: Where the file system begins.
    """

    product: Product
    gpu: Gpu
    found: list[Library]
    root: Path

    @property
    def bad(self) -> Status:
        """How grave it is that an installed product cannot be used: nothing here could use it."""
        return "fail" if self.gpu.devices else "warn"


def is_installed(product: Product) -> bool:
    """Return whether a product's bindings are there, whole or not. Nothing is imported."""
    spec = importlib.util.find_spec(product)
    # a folder of that name, for example in the current one, is no package
    return spec is not None and spec.origin is not None


def runtimes(gpu: Gpu, root: Path = ROOT) -> Iterator[Check]:
    """Check both products; one that is absent is a line only where it could be used."""
    for product in TITLES:
        place = Place(product, gpu, libraries(product, root), root)
        if place.found and (gpu.devices or len(place.found) > 1):
            yield _files(place)
        if is_installed(product):
            yield from _bindings(place)
        else:
            yield from _absent(place)


def _files(place: Place) -> Check:
    """List every library; two of different versions may meet in one process."""
    name = "libnvinfer" if place.product == "tensorrt" else "libtensorrt_rtx"
    listed = [f"{x.version or 'unknown version'} in {x.path.parent}" for x in place.found]
    first, *others = place.found
    if all(first.agrees(other) for other in others):
        return Check(name, "ok", "; ".join(listed))
    mend = (
        "keep one (pip uninstall, apt remove, or take its folder out of LD_LIBRARY_PATH): engines "
        "of one do not load in the other"
    )
    return Check(name, "warn", "; ".join(listed), mend)


def _absent(place: Place) -> Iterator[Check]:
    """Say how a product would be installed, or that another Python has it."""
    title = TITLES[place.product]
    if place.product == "tensorrt":
        # Debian's and NVIDIA's packages are of the system's Python alone
        folders = sorted((place.root / "usr/lib").glob("python3*/dist-packages/tensorrt"))
        if folders:
            yield _elsewhere(folders)
            return
    version = product_version(place.product)
    if version is not None:
        detail = f"{version} is half installed: there is no module {place.product}"
        yield Check(title, place.bad, detail, _anew(place))
        return
    if not place.gpu.devices:
        return
    if place.product == "tensorrt" and jetson.is_jetson(place.root):
        mend = f"sudo apt install tensorrt python3-libnvinfer, then {VENV}"
        yield Check(title, "ok", f"not installed; optional: {mend}")
    elif place.product == "tensorrt" or _may_run_rtx(place.gpu):
        extra = EXTRAS[place.product]
        yield Check(title, "ok", f"not installed; optional: pip install 'fastrestore[{extra}]'")


def _elsewhere(folders: list[Path]) -> Check:
    pythons = [folder.parts[-3].removeprefix("python") for folder in folders]
    if HERE in pythons or "3" in pythons:
        detail = f"is in {folders[0].parent}, which this Python does not look into"
        return Check("TensorRT", "warn", detail, f"make the environment anew: {VENV}")
    detail = f"is installed for Python {', '.join(pythons)}, this is {HERE}"
    python = f"python{pythons[-1]}"
    mend = f"use that Python: {python} -m venv --system-site-packages VENV"
    return Check("TensorRT", "warn", detail, mend)


def _may_run_rtx(gpu: Gpu) -> bool:
    capabilities = {tuple(d["sm"]) for d in gpu.devices}
    return any(sm >= (7, 5) and sm not in NO_RTX for sm in capabilities)


def _bindings(place: Place) -> Iterator[Check]:
    """Import the bindings and look at what came with them."""
    title, told = TITLES[place.product], product_version(place.product)
    if place.gpu.is_lost:
        detail = f"{told or 'unknown version'}; not tried while the driver fails"
        yield Check(title, "warn", detail, "mend the driver first")
        return
    facts = ask_native(f"import:{place.product}")
    if "lost" in facts:
        mend = "reinstall it, and the driver if that does not help"
        yield Check(title, place.bad, f"{told or ''} cannot be imported: {facts['lost']}", mend)
    elif "error" in facts:
        cause, mend = cause_of(place, facts["error"])
        detail = f"{told or 'unknown version'}, cannot be imported: {cause}"
        yield Check(title, place.bad, detail, mend)
    else:
        yield _version(place, facts, told)
        yield from _mixed(place, facts["libraries"])


def _version(place: Place, facts: dict[str, Any], told: str | None) -> Check:
    """Judge the version of bindings that work."""
    title, version = TITLES[place.product], str(facts["version"])
    numbers = tuple(map(int, re.findall(r"\d+", version)[:2]))
    if place.product == "tensorrt" and numbers < OLDEST:
        if jetson.is_jetson(place.root):
            mend = "install JetPack 6.2 or newer; until then ONNX Runtime is used"
        else:
            mend = "pip install --upgrade 'fastrestore[tensorrt]'"
        return Check(title, "warn", f"{version} is too old, 10.3 is needed", mend)
    if told and version != told and not version.startswith(f"{told}."):
        detail = f"{version} is imported, but {told} is what is installed: there are two"
        return Check(title, "warn", detail, "uninstall one of them")
    wanted = _cuda_of(place.product)
    if place.gpu.cuda and wanted and wanted > place.gpu.cuda[0]:
        detail = f"{version} is for CUDA {wanted}, the driver knows {place.gpu.cuda[0]}"
        return Check(title, "warn", detail, "install a newer driver, or the package of that CUDA")
    use = "" if place.gpu.devices else "; builds for other machines, no device is here"
    return Check(title, "ok", version + (use if place.product == "tensorrt_rtx" else ""))


def _mixed(place: Place, loaded: list[str]) -> Iterator[Check]:
    stem = "libnvinfer" if place.product == "tensorrt" else "libtensorrt_rtx"
    own = [path for path in loaded if Path(path).name.startswith(stem)]
    if len(own) > 1:
        detail = f"one import loads {len(own)} of {stem}: {', '.join(own)}"
        mend = "take the other folder out of LD_LIBRARY_PATH, or uninstall one"
        yield Check(f"{stem} twice", place.bad, detail, mend)


def _cuda_of(product: Product) -> int | None:
    """Return the CUDA that the installed package was made for, None if its name does not say."""
    names = [d for d in DISTRIBUTIONS[product] if package_version(d)]
    found = next((m for n in names if (m := re.search(r"-cu(\d+)", n))), None)
    return int(found[1]) if found else None


def cause_of(place: Place, error: str) -> tuple[str, str]:
    """Turn what an import raised into its cause and what mends it.

    Args:
        place: Where it was tried.
        error: Class and text, one line.
    """
    missing = _MISSING.search(error)
    if missing:
        return f"{missing[1]} is not found", _find_library(place, missing[1])
    if _OTHER_PYTHON.search(error):
        return (
            f"it was built for another Python than {HERE}",
            "install it with this Python's own pip, or use the Python that it was built for",
        )
    if "GLIBC" in error:
        found = re.search(r"GLIBC\w*_[\d.]+", error)
        needs = found[0] if found else "a newer libc"
        return f"it needs a newer system ({needs})", "take an older version, or a newer system"
    absent = re.search(r"No module named '([\w.]+)'", error)
    if absent:
        return f"its part {absent[1]} is missing", _anew(place)
    if "undefined symbol" in error:
        return "bindings and library are of different versions", "keep one installation"
    return error, _anew(place)


def _find_library(place: Place, name: str) -> str:
    """Say where a library that the loader misses is, or how to get it."""
    board = jetson.is_jetson(place.root)
    if name.startswith("libnvdla_compiler"):
        return _find_dla(place.root)
    if name.startswith("libcuda."):
        return "see `GPU driver` above"
    same = [x.path.parent for x in place.found if (x.path.parent / name).exists()]
    if same:
        return f"export LD_LIBRARY_PATH={same[0]}:$LD_LIBRARY_PATH"
    if not re.match(r"libnv(infer|onnx)|libtensorrt", name):
        return f"install what brings {name}, or add its folder to LD_LIBRARY_PATH"
    if board:
        return _anew(place)
    dists = [d for d in DISTRIBUTIONS[place.product] if d.endswith("-bindings")]
    for dist in dists:
        version = package_version(dist)
        if version:
            return f"pip install {dist.removesuffix('-bindings')}-libs=={version}"
    return _anew(place)


def _anew(place: Place) -> str:
    """Return how to install a product once more, for the CUDA it was installed for."""
    if place.product == "tensorrt" and jetson.is_jetson(place.root):
        return "sudo apt install --reinstall tensorrt python3-libnvinfer"
    names = [d for d in DISTRIBUTIONS[place.product] if package_version(d)]
    package = names[0].removesuffix("-bindings") if names else TITLES[place.product].lower()
    return f"pip install --force-reinstall {package}"


def _find_dla(root: Path) -> str:
    """Say how to get DLA's compiler, which TensorRT is linked to on a Jetson up to JetPack 6."""
    l4t = jetson.release(root)
    if l4t is not None and int(l4t.partition(".")[0]) >= 38:
        return "JetPack 7 has none: use its own TensorRT, not that of an image for JetPack 6"
    place = " on the host, not in the container" if jetson.is_container(root) else ""
    return f"sudo apt install nvidia-l4t-dla-compiler{place}"
