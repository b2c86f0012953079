"""What this machine can load, told without loading TensorRT, and which engines fit that."""

from __future__ import annotations

import hashlib
from functools import lru_cache

from fastrestore.backend import shipped_models
from fastrestore.cuda import find_device
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


def product_version(product: Product) -> str | None:
    """Return the installed version of TensorRT or TensorRT-RTX; None if there is none."""
    return next((v for d in DISTRIBUTIONS[product] if (v := package_version(d))), None)


def device() -> DeviceRecord | None:
    """Return the GPU that the runtime would use; None without one, or without CUDA bindings.

    Raises:
        EngineError: The driver or its bindings are broken.
    """
    try:
        found = find_device()
    except MissingExtraError:
        return None
    return None if found is None else DeviceRecord(found.name, found.sm)


def expected_of(product: Product) -> Expected:
    """Return what an engine of a product must fit to be loaded here."""
    return Expected(product=product, version=product_version(product), device=device())


def fits_here(entry: Entry) -> tuple[bool | None, str]:
    """Tell whether an engine can be loaded here, and if not, or if it cannot be told, why.

    Returns:
        True, False, or None = not known; one line, empty for True.
    """
    if entry.record is None:
        return False, entry.problem
    here = expected_of(entry.record.product)
    reason = next(differences(entry.record, here), None)
    if reason is not None:
        return False, reason
    if here.version is None:
        return None, f"{TITLES[entry.record.product]} is not installed here"
    if here.device is None:
        return None, "no device here"
    return True, ""


def stale(entry: Entry) -> str:
    """Say why nobody here will load an engine again; empty if it may be loaded.

    One for another system is not stale: it was built here to be taken there. Nor is one of
    another model file than the one that ships: see `of_another_model`.
    """
    record = entry.record
    if record is None:
        return entry.problem
    product = record.product
    here = Expected(product, product_version(product), device(), os=None, arch=None)
    return next(differences(record, here), "")


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
