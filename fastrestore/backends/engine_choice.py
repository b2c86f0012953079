"""Which engines of the cache a model runs on, and why; told by their sidecars."""

from __future__ import annotations

import hashlib
import importlib
import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from fastrestore.atomic import label
from fastrestore.backend import Backend, read_model
from fastrestore.backends.engine_load import EXTRAS
from fastrestore.engine_cache import Entry, entries, find
from fastrestore.engine_file import DeviceRecord, EngineRecord, Expected
from fastrestore.engine_fit import build_command, differences
from fastrestore.engine_here import is_installed, product_version
from fastrestore.engine_record import TITLES, Product
from fastrestore.errors import FastRestoreError, MissingExtraError, need
from fastrestore.spec import ModelSpec

logger = logging.getLogger(__name__)

PRODUCTS: dict[str, Product] = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}


class Wish:
    """A model, and where it is to run."""

    def __init__(
        self, data: bytes, spec: ModelSpec, model: str, device: int = 0, trust: bool = False
    ) -> None:
        """Keep what is wanted; nothing is looked up.

        Args:
            data: The ONNX file.
            spec: What it says of itself.
            model: What the user calls it, for mending commands.
            device: CUDA device.
            trust: See `check_engine`.
        """
        self.spec, self.model, self.device, self.trust = spec, model, device, trust
        self._data = data

    @cached_property
    def sha256(self) -> str:
        """Of the ONNX file."""
        return hashlib.sha256(self._data).hexdigest()

    def expected(self, product: Product, device: DeviceRecord | None) -> Expected:
        """Return what an engine must fit."""
        version = product_version(product)
        return Expected(product, version, device, self.sha256, self.model, index=self.device)


def open_file(wish: Wish, engine: str | Path, name: str) -> Backend:
    """Open one engine file.

    Raises:
        InputError, EngineError, MissingExtraError, ModelError: See `TensorRtBackend`.
    """
    return _open(wish, [Path(engine)], PRODUCTS.get(name))


def open_best(wish: Wish, name: str) -> Backend:
    """Open the engines of a product that fit: for each size the fastest.

    Verified ones if there are any; else what is found is verified now.

    Raises:
        EngineError: None fits, the line says what comes nearest; or see `TensorRtBackend`.
        MissingExtraError: The runtime or a CUDA binding is not installed.
    """
    product = PRODUCTS[name]
    _refuse_absent(wish, product)
    found = [e for e in entries() if _fits(e, wish.expected(product, None))]
    # before anything native: where no engine is near, it does not matter what the driver says
    found = found or [find(wish.expected(product, None), verified=False)]
    here = wish.expected(product, _here(wish.device))
    paths = best(found, here) or [find(here, verified=False).path]
    return _open(wish, paths, product)


def open_auto(wish: Wish) -> Backend | None:
    """Open verified engines, None where there are none; one line in the log says why."""
    why = "no engine of it was built here"
    try:
        built = [e for e in entries() if e.record is not None and e.record.verification is not None]
    except FastRestoreError as e:  # nobody who has no cache has an engine in it
        built, why = [], str(e)
    for name, product in PRODUCTS.items():
        found = [e for e in built if _fits(e, wish.expected(product, None))]
        if not found:
            continue
        try:
            paths = best(found, wish.expected(product, _here(wish.device)))
            if not paths:
                why = "its engines are of another device"
                continue
            backend = _open(wish, paths, product)
        except FastRestoreError as e:
            logger.warning("%s runs on ort: %s", wish.spec.name, str(e))
            return None
        logger.info("%s runs on %s: %s", wish.spec.name, name, label(paths[0].name))
        return backend
    logger.info("%s runs on ort: %s", wish.spec.name, why)
    return None


def with_engines(models: Sequence[str], device: int = 0) -> list[str]:
    """Return the backends that have a verified engine of every model for a device."""
    built = [e for e in entries() if e.record is not None and e.record.verification is not None]
    if not built:  # the driver is not asked
        return []
    try:
        here = _here(device)
    except FastRestoreError:
        return []
    wishes = [Wish(*read_model(model, "restorer"), model) for model in models]
    return [
        name
        for name, product in PRODUCTS.items()
        if all(any(_fits(e, w.expected(product, here)) for e in built) for w in wishes)
    ]


def best(found: list[Entry], expected: Expected) -> list[Path]:
    """Return for each size the engine that was measured fastest, then the newest.

    Verified ones alone, if there are any.
    """
    fits = [(e, e.record) for e in found if e.record is not None and _fits(e, expected)]
    checked = [(e, r) for e, r in fits if r.verification is not None]
    kept: dict[object, Path] = {}
    for entry, record in sorted(checked or fits, key=lambda pair: (_ms(pair[1]), pair[0].age_s)):
        kept.setdefault(record.profile.get("frame"), entry.path)
    return list(kept.values())


def _refuse_absent(wish: Wish, product: Product) -> None:
    """Refuse a runtime that is not installed; name the other one if that is.

    Raises:
        MissingExtraError: It is not.
    """
    if is_installed(product):
        return
    title = TITLES[product]
    for name, other in PRODUCTS.items():
        if not is_installed(other):
            continue
        there = any(_fits(e, wish.expected(other, None)) for e in entries())
        device = ["--device", str(wish.device)] if wish.device else []
        build = build_command(wish.sha256, wish.model, ["--target", name, *device])
        first = "" if there else f"{build}, then "
        raise MissingExtraError(
            f"{title} is not installed here, {TITLES[other]} is; {first}use --backend {name}"
        )
    need(product, EXTRAS[product])


def _fits(entry: Entry, expected: Expected) -> bool:
    return entry.record is not None and not any(differences(entry.record, expected))


def _ms(record: EngineRecord) -> float:
    return record.verification.mean_latency_ms if record.verification else float("inf")


def _here(index: int) -> DeviceRecord:
    """Return the GPU; loads the driver.

    Raises:
        EngineError, MissingExtraError: See `cuda.device_at`.
    """
    found = importlib.import_module("fastrestore.cuda").device_at(index)
    return DeviceRecord(found.name, found.sm)


def _open(wish: Wish, paths: list[Path], product: Product | None) -> Backend:
    from fastrestore.backends.tensorrt import TensorRtBackend

    return TensorRtBackend(
        paths,
        wish.spec,
        wish.sha256,
        model=wish.model,
        product=product,
        device=wish.device,
        trust=wish.trust,
        verify=True,
    )
