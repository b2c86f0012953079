"""What this machine can load, told without loading TensorRT, and which engines fit that."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from functools import lru_cache
from typing import NamedTuple

from fastrestore.backend import shipped_models
from fastrestore.cuda import AbsentError, find_device, open_driver
from fastrestore.engine_cache import Entry
from fastrestore.engine_file import DeviceRecord, Expected
from fastrestore.engine_fit import differences
from fastrestore.engine_record import TITLES, Product
from fastrestore.environment import package_version
from fastrestore.errors import MissingExtraError
from fastrestore.spec import read_spec

# the bindings first: their version is the one that the module tells; apt calls them `tensorrt`
DISTRIBUTIONS: dict[Product, tuple[str, ...]] = {
    "tensorrt": (
        "tensorrt-cu12-bindings",
        "tensorrt-cu13-bindings",
        "tensorrt",
        "tensorrt-cu12",
        "tensorrt-cu13",
    ),
    "tensorrt_rtx": (
        "tensorrt-rtx-cu12-bindings",
        "tensorrt-rtx-cu13-bindings",
        "tensorrt-rtx",
    ),
}


class Fit(NamedTuple):
    """Whether an engine can be loaded here.

    Attributes:
        fits: True, False, or None = that cannot be told.
        why: If not, or if it cannot be told, one line; empty for True.
        device: Index of the first GPU that it fits.
    """

    fits: bool | None
    why: str = ""
    device: int = 0


def product_version(product: Product) -> str | None:
    """Return the installed version of TensorRT or TensorRT-RTX; None if there is none."""
    return next((v for d in DISTRIBUTIONS[product] if (v := package_version(d))), None)


def is_installed(product: Product) -> bool:
    """Tell whether TensorRT or TensorRT-RTX can be found, without loading it."""
    if product_version(product) is not None or sys.modules.get(product) is not None:
        return True
    return importlib.util.find_spec(product) is not None


def device(index: int = 0) -> DeviceRecord | None:
    """Return the GPU that the runtime would use; None without any, or without CUDA bindings.

    Args:
        index: Among those that CUDA_VISIBLE_DEVICES leaves.

    Raises:
        EngineError: There are others, but none of that index; or the driver is broken.
    """
    try:
        found = find_device(index)
    except MissingExtraError:
        return None
    return None if found is None else DeviceRecord(found.name, found.sm)


def devices() -> list[DeviceRecord]:
    """Return all GPUs that are visible, by index; none without CUDA bindings.

    Raises:
        EngineError: The driver or its bindings are broken.
    """
    try:
        driver = open_driver()
    except (MissingExtraError, AbsentError):
        return []
    found = [driver.describe(i) for i in range(driver.count())]
    return [DeviceRecord(d.name, d.sm) for d in found]


def expected_of(product: Product, index: int = 0) -> Expected:
    """Return what an engine of a product must fit to be loaded here on a GPU."""
    return Expected(product, product_version(product), device(index), index=index)


def fits_here(entry: Entry) -> Fit:
    """Tell whether an engine can be loaded here, on any of the GPUs."""
    if entry.record is None:
        return Fit(False, entry.problem)
    product, found = entry.record.product, devices()
    version = product_version(product)
    places = found or (None,)
    reasons = [next(differences(entry.record, Expected(product, version, d)), "") for d in places]
    if "" not in reasons:
        return Fit(False, reasons[0])
    if version is None:
        return Fit(None, f"{TITLES[product]} is not installed here")
    if not found:
        return Fit(None, "no device here")
    return Fit(True, device=reasons.index(""))


def stale(entry: Entry) -> str:
    """Say why nobody here will load an engine again; empty if it may be loaded.

    One for another system is not stale: it was built here to be taken there. Nor is one of
    another model file than the one that ships: see `of_another_model`.
    """
    record = entry.record
    if record is None:
        return entry.problem
    product = record.product
    version, places = product_version(product), devices() or (None,)
    here = [Expected(product, version, d, os=None, arch=None) for d in places]
    reasons = [next(differences(record, expected), "") for expected in here]
    return "" if "" in reasons else reasons[0]


def of_another_model(entry: Entry) -> bool:
    """Tell whether an engine has a shipped model's name, but was built from another file.

    That file is an older one that shipped, or the user's own: nothing here tells which.
    """
    if entry.record is None:
        return False
    sums = _shipped().get(entry.record.model.name)
    return sums is not None and entry.record.model.sha256 not in sums


@lru_cache(maxsize=1)
def _shipped() -> dict[str, set[str]]:
    """Return the SHA-256 of the shipped model files of every name."""
    found: dict[str, set[str]] = {}
    for path in shipped_models():
        data = path.read_bytes()
        sums = found.setdefault(read_spec(data, path.name).name, set())
        sums.add(hashlib.sha256(data).hexdigest())
    return found
