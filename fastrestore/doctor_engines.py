"""What the doctor finds out about the cache of engines: whose it is, and what in it is of use.

Whether an engine fits is asked in another process, because that loads a CUDA binding.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastrestore import engine_cache, jetson
from fastrestore.atomic import label
from fastrestore.doctor_check import Check, Status
from fastrestore.doctor_gpu import Gpu
from fastrestore.engine_cache import Entry
from fastrestore.engine_file import refuse_hands
from fastrestore.engine_fit import rebuild
from fastrestore.errors import EngineError, InputError
from fastrestore.probe import ROOT, ask_native

FOLDERS = ("", "engines", "timing", "runtime")


def engines(gpu: Gpu, has_runtime: bool, root: Path = ROOT) -> Iterator[Check]:
    """Check the cache; one that is absent is a line only where something could be built.

    Args:
        gpu: From `doctor_gpu.look`.
        has_runtime: Whether TensorRT or TensorRT-RTX is installed.
        root: Where the file system begins; the cache has a place of its own.
    """
    bad: Status = "fail" if gpu.devices and has_runtime else "warn"
    try:
        place = engine_cache.root()
        found = engine_cache.entries()
    except (EngineError, InputError) as e:
        yield _unreadable(e, bad)
        return
    yield from _hands(place, found, bad)
    if not found:
        if has_runtime:
            detail = (
                f"none in {label(place / 'engines')}; `fastrestore build-engine tiny` makes one"
            )
            yield Check("engines", "ok", detail)
        return
    size_mb = sum(e.size_bytes for e in found) / 1e6
    detail = f"{len(found)} in {label(place / 'engines')}, {size_mb:.1f} MB"
    yield Check("engines", "ok", detail)
    facts: dict[str, Any] = {"lost": "the driver fails"}
    if not gpu.is_lost:
        facts = ask_native("engines")
    problem = facts.get("lost") or facts.get("error")
    if problem:
        mend = "mend what is said of the driver and the CUDA binding"
        yield Check("engines here", "warn", f"whether they fit is not known: {problem}", mend)
        return
    told: dict[str, Any] = facts["engines"]
    yield from _use(found, told)
    yield from _modes([e for e in found if not _of(e, told)["stale"]], root)


def _unreadable(e: EngineError | InputError, bad: Status) -> Check:
    """Split one of our errors, which says what and how to mend it."""
    what, _, mend = str(e).partition("; ")
    return Check("engine cache", bad, what, mend or "set FASTRESTORE_CACHE to a folder of yours")


def _hands(place: Path, found: list[Entry], bad: Status) -> Iterator[Check]:
    """Check that nobody else can change what is going to be run."""
    folders = [f for f in ((place / name) for name in FOLDERS) if f.is_dir()]
    for path in [*folders, *(e.path for e in found if e.size_bytes)]:
        info = path.lstat()
        quoted = shlex.quote(str(path))
        mine = f'sudo chown -R "$(id -un)" {quoted}'
        try:
            refuse_hands(path, info)
        except EngineError as e:
            is_foreign = info.st_uid not in (os.geteuid(), 0)
            what = str(e).partition("; ")[0]
            yield Check("engine cache", bad, what, mine if is_foreign else f"chmod go-w {quoted}")
            return
        if path in folders and not os.access(path, os.R_OK | os.W_OK | os.X_OK):
            what = f"{label(path)}: cannot be written; was it made with sudo?"
            yield Check("engine cache", bad, what, mine)
            return


def _use(found: list[Entry], told: dict[str, Any]) -> Iterator[Check]:
    """Name engines that nobody will load again, and such as were never compared."""
    stale = [(e, why) for e in found if (why := _of(e, told)["stale"])]
    if stale:
        detail = f"{len(stale)} of no more use: {stale[0][1].partition('; ')[0]}"
        yield Check("engines stale", "warn", detail, "fastrestore engines prune")
    unverified = [
        e
        for e in found
        if e.record is not None and e.record.verification is None and _of(e, told)["fits"]
    ]
    if unverified:
        name = unverified[0].path.stem
        detail = f"{len(unverified)} fit here and were never compared with ONNX Runtime"
        index = _of(unverified[0], told)["device"]
        device = f" --device {index}" if index else ""
        mend = f"fastrestore engines verify {shlex.quote(name)}{device}"
        yield Check("engines not verified", "warn", detail, mend)


def _modes(found: list[Entry], root: Path) -> Iterator[Check]:
    """Name engines that were tuned in another power mode of this board than it is in now."""
    mode = jetson.power_mode(root) if jetson.is_jetson(root) else None
    if mode is None:
        return
    told = [(e.record, e.path) for e in found if e.record is not None]
    others = [t for t in told if t[0].power_mode not in (None, str(mode.number), mode.name)]
    if others:
        record, path = others[0]
        detail = f"{len(others)} built in another power mode, the first in {record.power_mode}"
        mend = rebuild(record, path=path).replace("`", "")
        yield Check("engines' power mode", "warn", f"{detail}; it is {mode.number} now", mend)


def _of(entry: Entry, told: dict[str, Any]) -> dict[str, Any]:
    """Return what is told of an engine; one that came or went meanwhile is let be."""
    facts: dict[str, Any] = told.get(str(entry.path), {"fits": None, "device": 0, "stale": ""})
    return facts
