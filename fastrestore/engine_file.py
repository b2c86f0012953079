"""An engine and its sidecar `NAME.json`: written as a pair, checked before anything native.

A crash at any moment leaves a pair that works. `write_engine` first copies the engine that is
there, if it is sound, to `NAME.old`, then replaces the engine, then the sidecar, then removes the
copy; each file is replaced whole. The sidecar decides: a reader takes whichever of `NAME` and
`NAME.old` has the sidecar's SHA-256, and looks again if the sidecar was replaced meanwhile.

`check_engine` returns the very bytes that it checked, so that nothing can come between the check
and the load. Nothing here loads TensorRT.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from fastrestore.atomic import label, write_file
from fastrestore.engine_fit import (
    ANEW,
    BUILD,
    Expected,
    argument,
    cache_holds,
    rebuild,
    refuse_other,
)
from fastrestore.engine_record import (
    TITLES,
    DeviceRecord,
    EngineRecord,
    ModelRecord,
    PluginRecord,
    Product,
    Verification,
)
from fastrestore.errors import EngineError, OutputError
from fastrestore.locking import lock

__all__ = [
    "DeviceRecord",
    "Engine",
    "EngineRecord",
    "Expected",
    "ModelRecord",
    "PluginRecord",
    "Verification",
    "backup",
    "check_engine",
    "private_folder",
    "read_record",
    "refuse_hands",
    "sidecar",
    "write_engine",
    "write_lock",
    "write_record",
]

MAX_SIDECAR_BYTES = 1_000_000
MAGIC: dict[bytes, Product] = {b"ftrt": "tensorrt", b"vtrt": "tensorrt_rtx"}
_RTX_SIZE = slice(16, 24)  # u64, the file's own size, in 1.7
_HEAD_BYTES = 64
_LOOKS = 10  # an engine that is replaced again and again is not read for ever
_TRUST = "if you trust it, add --trust-engine"


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine that passed its checks.

    Attributes:
        path: As it was asked for.
        data: The engine; load these bytes, not the file.
        record: Its sidecar; None for one from elsewhere that is trusted.
    """

    path: Path
    data: bytes
    record: EngineRecord | None


def sidecar(path: str | os.PathLike[str]) -> Path:
    """Return the path of an engine's sidecar."""
    return Path(f"{os.fspath(path)}.json")


def backup(path: str | os.PathLike[str]) -> Path:
    """Return where the old engine lies while a pair is being replaced."""
    return Path(f"{os.fspath(path)}.old")


def read_record(path: str | os.PathLike[str]) -> EngineRecord:
    """Read the sidecar of an engine; the engine itself is not looked at.

    Args:
        path: The engine's path, not the sidecar's.

    Raises:
        EngineError: No sidecar, a link, over 1 MB, or not what `EngineRecord.from_json` reads.
    """
    return _read_sidecar(path, trust=True)


def _read_sidecar(path: str | os.PathLike[str], trust: bool) -> EngineRecord:
    place = sidecar(path)
    with _open(place, f"{label(path)}: has no sidecar {label(place.name)}; {ANEW}") as (
        file,
        info,
    ):
        if info.st_size > MAX_SIDECAR_BYTES:
            raise EngineError(
                f"{label(place)}: has {info.st_size} bytes, no sidecar has more than "
                f"{MAX_SIDECAR_BYTES}; {ANEW}"
            )
        if not trust:
            refuse_hands(place, info)
        text = file.read(MAX_SIDECAR_BYTES)
    try:
        return EngineRecord.from_json(text)
    except EngineError as e:
        raise EngineError(f"{label(place)}: {e}; {ANEW}") from e


def check_engine(
    path: str | os.PathLike[str], expected: Expected | None = None, trust: bool = False
) -> Engine:
    """Read an engine if it is sound and fits; else say the first thing that is wrong.

    In this order, what costs least first: a link, absent, empty, another kind of file, folder or
    file in other hands, no sidecar, sidecar unreadable, size, product, version, system, GPU,
    model, shape, SHA-256.

    Args:
        path: The engine.
        expected: What it must fit; None = sound is enough.
        trust: Accept an engine without a sidecar, and files that others can change. A sidecar
            that is there is believed no more than without it.

    Raises:
        EngineError: One line with the cause and the command that mends it.
    """
    target, wanted = Path(path), expected or Expected(os=None, arch=None)
    for _ in range(_LOOKS):
        before = _stamp(target)
        try:
            return _check(target, wanted, trust)
        except EngineError:
            if _stamp(target) == before:
                raise
    raise EngineError(f"{label(target)}: is being replaced all the time; wait for its builder")


def write_lock(path: str | os.PathLike[str]) -> Path:
    """Return the file on which a `lock` is held while a pair is replaced: for milliseconds."""
    target = Path(path)
    return target.with_name(f".{target.name}.write")


def refuse_hands(path: Path, info: os.stat_result, can_trust: bool = True) -> None:
    """Refuse what another user could have changed: an engine is a program. POSIX only.

    Args:
        path: A file or folder, for messages.
        info: What the system says of it.
        can_trust: Whether the command at hand has `--trust-engine`.

    Raises:
        EngineError: It belongs to someone else than this user and root, or others may write.
    """
    if os.name != "posix":
        return
    trust = f", or {_TRUST}" if can_trust else ""
    if info.st_uid not in (os.geteuid(), 0):  # root can change everything anyway
        other = ", or set FASTRESTORE_CACHE to another folder" if cache_holds(path) else ""
        raise EngineError(
            f"{label(path)}: belongs to another user; "
            f'`sudo chown -R "$(id -un)" {argument(path)}`{other}{trust}'
        )
    shared = stat.S_ISDIR(info.st_mode) and info.st_mode & stat.S_ISVTX  # as /tmp is
    if info.st_mode & 0o022 and not shared:
        raise EngineError(
            f"{label(path)}: others may write to it; `chmod go-w {argument(path)}`{trust}"
        )


def private_folder(path: str | os.PathLike[str]) -> Path:
    """Make a folder that only its owner can read or write, if it is absent; return it.

    Raises:
        OutputError: It cannot be made.
    """
    try:
        Path(path).mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as e:
        other = "set FASTRESTORE_CACHE to another folder" if cache_holds(path) else "choose another"
        raise OutputError(f"{label(path)}: cannot be made ({e.strerror}); {other}") from e
    return Path(path)


def write_engine(path: str | os.PathLike[str], data: bytes, record: EngineRecord) -> EngineRecord:
    """Write an engine and its sidecar, only for the owner; the old pair stays until then.

    Args:
        path: The engine; its folder is made, only for the owner, if absent.
        data: The serialised engine.
        record: Its sidecar; `engine_sha256` and `engine_bytes` are filled in.

    Returns:
        The record as written.

    Raises:
        OutputError: The folder cannot be written or the disk is full; the old pair is untouched.
    """
    target = Path(path)
    digest = hashlib.sha256(data).hexdigest()
    whole = replace(record, engine_sha256=digest, engine_bytes=len(data))
    private_folder(target.parent)
    with lock(write_lock(target)):
        try:
            old = _check(target, Expected(os=None, arch=None), trust=True)
        except EngineError:  # none, or nothing that could be loaded
            old = None
        is_replaced = False
        try:
            if old is not None:
                _put(backup(target), old.data)
            _put(target, data)
            is_replaced = True
            _put(sidecar(target), whole.to_json().encode())
        except (OutputError, KeyboardInterrupt):
            if old is not None and _size(backup(target)) is not None:
                os.replace(backup(target), target)  # also what an earlier crash had left there
            elif old is None and is_replaced:
                target.unlink()
            raise
        backup(target).unlink(missing_ok=True)
    return whole


def write_record(path: str | os.PathLike[str], record: EngineRecord) -> None:
    """Replace the sidecar of an engine, for example once it is verified.

    Raises:
        EngineError: The engine has been replaced since the record was read.
        OutputError: The folder cannot be written.
    """
    target = Path(path)
    with lock(write_lock(target)):
        if read_record(target).engine_sha256 != record.engine_sha256:
            raise EngineError(f"{label(target)}: was replaced meanwhile; do it again")
        _put(sidecar(target), record.to_json().encode())


def _put(path: Path, data: bytes) -> None:
    write_file(path, data)
    path.chmod(0o600)


def _stamp(path: Path) -> tuple[int, ...] | None:
    """Return what changes when a sidecar is replaced."""
    try:
        info = os.lstat(sidecar(path))
    except OSError:
        return None
    return info.st_ino, info.st_mtime_ns, info.st_ctime_ns, info.st_size


def _check(path: Path, expected: Expected, trust: bool) -> Engine:
    has_sidecar = os.path.lexists(sidecar(path))
    absent = "only its sidecar is here, the engine is gone" if has_sidecar else "no such engine"
    with _open(path, f"{label(path)}: {absent}; {ANEW}") as (file, info):
        head = file.read(_HEAD_BYTES)
        _refuse_kind(path, head)
        if not trust:
            refuse_hands(path, info)
            refuse_hands(path.parent, os.stat(path.parent))
        if not has_sidecar:
            _refuse_foreign(path, head, info.st_size, expected, trust)
            return Engine(path, head + file.read(), None)
    record = _read_sidecar(path, trust)
    if record.engine_bytes not in (_size(path), _size(backup(path))):
        raise EngineError(
            f"{label(path)}: has {info.st_size} bytes of {record.engine_bytes}, it was cut short "
            f"or replaced; {rebuild(record, expected, path, is_damaged=True)}"
        )
    refuse_other(path, record, expected)
    for place in (path, backup(path)):  # in this order: the copy is there before a new engine is
        if _size(place) == record.engine_bytes:
            with _open(place, f"{label(place)}: is gone; {ANEW}") as (file, _):
                data = file.read()
            if hashlib.sha256(data).hexdigest() == record.engine_sha256:
                _refuse_product(path, data[:4], record, expected)
                return Engine(path, data, record)
    _refuse_product(path, head[:4], record, expected)
    raise EngineError(
        f"{label(path)}: its bytes are not those that were built, SHA-256 differs; "
        f"{rebuild(record, expected, path, is_damaged=True)}"
    )


def _refuse_product(path: Path, head: bytes, record: EngineRecord, expected: Expected) -> None:
    """Refuse an engine that begins as one of the other product than its sidecar says."""
    built_by = MAGIC.get(head, record.product)
    if built_by != record.product:
        raise EngineError(
            f"{label(path)}: is an engine of {TITLES[built_by]}, its sidecar is of "
            f"{TITLES[record.product]}; {rebuild(record, expected, path, is_damaged=True)}"
        )


@contextmanager
def _open(path: Path, absent: str) -> Iterator[tuple[BinaryIO, os.stat_result]]:
    """Open a file for reading, never through a link, never what would block."""
    try:
        mode = os.lstat(path).st_mode
        if stat.S_ISLNK(mode):
            raise EngineError(f"{label(path)}: is a link, which others can turn; {_unlink(path)}")
        if not stat.S_ISREG(mode):
            raise EngineError(f"{label(path)}: is not a file; name the .engine file in it")
        with open(path, "rb", opener=_no_follow) as file:
            yield file, os.fstat(file.fileno())
    except FileNotFoundError as e:
        raise EngineError(absent) from e
    except OSError as e:
        raise EngineError(
            f"{label(path)}: cannot be read ({e.strerror}); `chmod u+r {argument(path)}`, or {ANEW}"
        ) from e


def _unlink(path: Path) -> str:
    """Return what to do about a link instead of an engine or a sidecar."""
    real = os.path.realpath(path)
    if path.suffix == ".json" or not os.path.isfile(real):
        return ANEW
    return f"name {label(real)}"


def _no_follow(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0))


def _size(path: Path) -> int | None:
    try:
        return os.lstat(path).st_size
    except OSError:
        return None


def _refuse_kind(path: Path, head: bytes) -> None:
    """Refuse what is no engine at all."""
    if not head:
        raise EngineError(f"{label(path)}: is empty; {ANEW}")
    # a ModelProto begins with its IR version, below 128, and goes on with a text or a message
    if len(head) > 2 and head[0] == 0x08 and head[1] < 0x80 and head[2] & 7 == 2:
        raise EngineError(
            f"{label(path)}: is an ONNX model under another name, no engine; "
            f"`{BUILD} {argument(path)}` builds one from it"
        )


def _refuse_foreign(path: Path, head: bytes, size: int, expected: Expected, trust: bool) -> None:
    """Refuse an engine without a sidecar as far as its first bytes tell."""
    if not trust:
        raise EngineError(
            f"{label(path)}: has no sidecar {label(sidecar(path).name)}, it comes from elsewhere; "
            f"{ANEW}, or {_TRUST}"
        )
    product = MAGIC.get(head[:4])
    if product is None:
        raise EngineError(f"{label(path)}: is no engine of TensorRT or TensorRT-RTX; {ANEW}")
    if expected.product not in (None, product):
        raise EngineError(
            f"{label(path)}: is an engine of {TITLES[product]}, here runs "
            f"{TITLES[expected.product]}; {ANEW}"
        )
    if product == "tensorrt_rtx" and int.from_bytes(head[_RTX_SIZE], "little") != size:
        raise EngineError(f"{label(path)}: was cut short or joined; {ANEW}")
