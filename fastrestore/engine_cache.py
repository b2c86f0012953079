"""Where built engines lie, what they are called, and which of them fits."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from fastrestore.atomic import label
from fastrestore.engine_file import (
    DeviceRecord,
    EngineRecord,
    Expected,
    backup,
    private_folder,
    read_record,
    refuse_hands,
    sidecar,
    write_lock,
)
from fastrestore.engine_fit import TARGETS, build_command, differences, rebuild, shape_text
from fastrestore.engine_record import Precision
from fastrestore.errors import EngineError, InputError, OutputError
from fastrestore.locking import lock

SUFFIX = ".engine"
# What does not make an engine another engine: where and how long it was built, how it did, where
# the pictures of its INT8 form lie (`int8_sha256` is what came of them), and what is only known
# afterwards.
_NOT_IN_KEY = {
    "driver",
    "build_seconds",
    "power_mode",
    "calibration",
    "verification",
    "reasons",
    "engine_sha256",
    "engine_bytes",
}
_LEFTOVER_S = 3600.0  # a file half-written for this long has lost its writer


@dataclass(frozen=True, slots=True)
class Entry:
    """One engine of the cache.

    Attributes:
        path: The engine file.
        record: Its sidecar; None if that cannot be read.
        problem: Why it cannot be read, one line; empty if it can.
        size_bytes: Of the engine file; 0 if it is gone.
        age_s: Since it was written.
    """

    path: Path
    record: EngineRecord | None
    problem: str
    size_bytes: int
    age_s: float


class Pruned(NamedTuple):
    """What `prune` did: the engines removed, or to be removed, and a line for each that stayed."""

    removed: list[Entry]
    faults: list[str]


def root() -> Path:
    """Return the cache folder, which need not exist: FASTRESTORE_CACHE, or the system's place.

    Raises:
        InputError: The system names no place.
    """
    given = os.environ.get("FASTRESTORE_CACHE")
    if given:
        return Path(given).absolute()
    try:
        if sys.platform == "win32":
            local = os.environ.get("LOCALAPPDATA")
            place = Path(local) if local else Path.home() / "AppData" / "Local"
        elif sys.platform == "darwin":
            place = Path.home() / "Library" / "Caches"
        else:
            xdg = os.environ.get("XDG_CACHE_HOME", "")
            # its specification: what is not absolute does not count
            place = Path(xdg) if os.path.isabs(xdg) else Path.home() / ".cache"
    except RuntimeError as e:
        raise InputError("cache: this user has no home folder; set FASTRESTORE_CACHE") from e
    return place / "fastrestore"


def make_folder(name: str) -> Path:
    """Make a folder of the cache, only for its owner, and return it.

    Args:
        name: `engines` or `timing`.

    Raises:
        EngineError: It is there, and in other hands.
        InputError: See `root`.
        OutputError: It cannot be made.
    """
    private_folder(root())
    folder = private_folder(root() / name)
    refuse_hands(folder, folder.stat(), can_trust=False)
    return folder


def key(record: EngineRecord) -> str:
    """Return the SHA-256, in hex, of everything that makes an engine what it is."""
    parts = {k: v for k, v in asdict(record).items() if k not in _NOT_IN_KEY}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def engine_path(record: EngineRecord) -> Path:
    """Return where an engine belongs, as in `tiny-fp16-1x736x1280-sm87-10.3.0-0123abcd.engine`.

    The folder is made. The last part is the beginning of `key`.

    Raises:
        EngineError, InputError, OutputError: See `make_folder`.
    """
    best = next((p[1] for n, p in record.profile.items() if n == "frame"), ())
    shape = shape_text(best[:3]) + ("" if record.is_static else "-dynamic")
    words = [record.model.name, record.precision, shape, _device(record), record.product_version]
    name = "-".join(re.sub(r"[^A-Za-z0-9._+-]", "_", word) for word in words).lstrip(".")
    return make_folder("engines") / f"{name[:160]}-{key(record)[:8]}{SUFFIX}"


def build_lock(path: str | os.PathLike[str]) -> Path:
    """Return the file on which a builder of this engine holds a `lock` from start to end."""
    target = Path(path)
    return target.with_name(f".{target.name}.build")


def timing_cache(device: DeviceRecord, version: str) -> Path:
    """Return the file of the builder's timings on one GPU by one version; its folder is made.

    Raises:
        EngineError, InputError, OutputError: See `make_folder`.
    """
    words = re.sub(r"[^A-Za-z0-9.]+", "_", f"{device.name} sm{device.sm} {version}")
    digest = hashlib.sha256(f"{device.name}|{device.sm}|{version}".encode()).hexdigest()
    return make_folder("timing") / f"{words[:100]}-{digest[:8]}.cache"


def entries() -> list[Entry]:
    """List all engines of the cache, the newest first.

    Raises:
        InputError: See `root`.
        EngineError: The folder cannot be read.
    """
    folder = root() / "engines"
    try:
        names = [p.name for p in folder.iterdir()]
    except FileNotFoundError:
        return []
    except OSError as e:
        raise EngineError(
            f"{label(folder)}: cannot be read ({e.strerror}); set FASTRESTORE_CACHE"
        ) from e
    engines = {n.removesuffix(".json") for n in names if n.removesuffix(".json").endswith(SUFFIX)}
    now = time.time()  # one for all, or those of the same moment would come in any order
    return sorted((_entry(folder / n, now) for n in engines), key=lambda e: (e.age_s, e.path))


def find(expected: Expected, precision: Precision | None = None, verified: bool = True) -> Entry:
    """Return the engine of the cache that fits best: measured fastest, then newest.

    The sidecars alone are read; `check_engine` looks at the bytes.

    Args:
        expected: What it must fit.
        precision: One alone; None = any.
        verified: Pass over engines that were never compared with another backend.

    Raises:
        EngineError: None fits; the line names what comes nearest and what to build.
    """
    found = entries()
    usable = [
        (e, e.record)
        for e in found
        if e.record is not None and precision in (None, e.record.precision)
    ]
    fits = [(e, r) for e, r in usable if not any(differences(r, expected))]
    checked = [(e, r) for e, r in fits if r.verification is not None or not verified]
    if checked:
        return min(checked, key=lambda pair: (_latency_ms(pair[1]), pair[0].age_s))[0]
    if fits:
        name = label(fits[0][0].path.name)
        device = f" --device {expected.index}" if expected.index else ""
        raise EngineError(f"{name}: is not verified; `fastrestore engines verify {name}{device}`")
    raise EngineError(_nearest(usable, expected, [e.problem for e in found if e.problem]))


def prune(keep: Callable[[Entry], bool], dry_run: bool = False) -> Pruned:
    """Remove engines, and what interrupted writers left over for an hour.

    An engine that is being built is passed over; what cannot be removed does not stop the rest.

    Args:
        keep: Says of an engine whether it stays.
        dry_run: Remove nothing.

    Raises:
        InputError, EngineError: See `entries`.
    """
    gone = [e for e in entries() if not keep(e)]
    if dry_run:
        return Pruned(gone, [])
    done = Pruned([], [])
    for entry in gone:
        try:
            if _remove(entry.path):
                done.removed.append(entry)
        except OutputError as e:
            done.faults.append(str(e))
    done.faults.extend(_remove_leftovers())
    return done


def _device(record: EngineRecord) -> str:
    sms = [record.device.sm] if record.device else record.compute_capabilities
    return "+".join("sm" + sm.replace(".", "").replace("+", "up") for sm in sms)


def _entry(path: Path, now: float) -> Entry:
    record, problem, info = None, "", None
    try:
        record = read_record(path)
    except EngineError as e:
        problem = str(e)
    with suppress(FileNotFoundError):
        info = path.lstat()
    if info is None and not problem:
        problem = f"{label(path)}: only its sidecar is here, the engine is gone"
    if info is None:
        return Entry(path, None, problem, 0, 0.0)
    if not stat.S_ISREG(info.st_mode) and not problem:
        record, problem = None, f"{label(path)}: is a link or a folder, no engine"
    return Entry(path, record, problem, info.st_size, max(0.0, now - info.st_mtime))


def _latency_ms(record: EngineRecord) -> float:
    return record.verification.mean_latency_ms if record.verification else float("inf")


def _nearest(
    usable: list[tuple[Entry, EngineRecord]], expected: Expected, problems: list[str]
) -> str:
    """Say of the engine with the fewest differences what the first one is."""
    if not usable:
        product = expected.product
        words = [] if product is None else ["--target", TARGETS[product]]
        words += ["--device", str(expected.index)] if expected.index else []
        build = build_command(expected.model_sha256, expected.model_name, words)
        told = f" that can be used ({problems[0].partition('; ')[0]})" if problems else ""
        return f"{label(root() / 'engines')}: no engine is here{told}; {build}"
    entry, record = min(usable, key=lambda pair: len([*differences(pair[1], expected)]))
    reason = next(differences(record, expected))
    return f"{label(entry.path.name)}: {reason}; {rebuild(record, expected)}"


class _BusyError(Exception):
    """An engine is being built."""


def _refuse() -> None:
    raise _BusyError


def _remove(path: Path) -> bool:
    """Remove an engine, its sidecar first: what a crash leaves is removed next time."""
    try:
        with lock(build_lock(path), _refuse), lock(write_lock(path)):
            for place in (sidecar(path), path, backup(path)):
                place.unlink(missing_ok=True)
    except _BusyError:
        return False
    except OutputError:
        raise
    except OSError as e:
        raise OutputError(_stays(path, e)) from e
    return True


def _remove_leftovers() -> list[str]:
    """Remove parts of files and lock files whose holder was killed; say what cannot be."""
    faults = []
    for path in sorted((root() / "engines").glob(".*")):
        try:
            if time.time() - path.lstat().st_mtime < _LEFTOVER_S:
                continue
            if path.name.endswith(".part"):
                path.unlink()
            elif path.name.endswith((".build", ".write")):
                with lock(path, _refuse):
                    pass  # what is let go is removed
        except (FileNotFoundError, _BusyError):
            continue
        except OutputError as e:
            faults.append(str(e))
        except OSError as e:
            faults.append(_stays(path, e))
    return faults


def _stays(path: Path, error: OSError) -> str:
    mend = "it is a folder, remove it yourself" if path.is_dir() else "see to its folder"
    return f"{label(path)}: cannot be removed ({error.strerror}); {mend}"
