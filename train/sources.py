"""Where pictures come from: folders, zips, packed files, LMDB, and lists that choose among them.

An entry is `PLACE`, `PLACE@LIST` or `PLACE@LIST:PART`. Nothing is unpacked to the disk.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

from fastrestore.arrays import U8
from fastrestore.atomic import label
from fastrestore.errors import InputError, need
from fastrestore.images import MAX_PIXELS, decode_picture, is_picture
from fastrestore.train.lists import choose, read_list

MANIFEST = "manifest.json"
FORMAT, SCHEMA = "fastrestore-pack", 1
MAX_BYTES = 1 << 29  # of one file: a 16-bit TIFF of MAX_PIXELS is a little more
PARTS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Source:
    """The pictures of one place, in a fixed order; a context manager.

    Attributes:
        where: The place, as messages call it.
        names: What `read` takes.
        sizes: Height and width, where known without decoding (packed files).
        absent: One line on names of the list that are not there, or empty.
    """

    where: str
    names: tuple[str, ...]
    _fetch: Callable[[str], bytes]
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    absent: str = ""
    _close: Callable[[], Any] = lambda: None

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def called(self, name: str) -> str:
        """Return what messages call a picture."""
        return label(f"{self.where}/{name}")

    def read(self, name: str) -> bytes:
        """Return the bytes of a picture file.

        Raises:
            InputError: It cannot be read, is larger than `MAX_BYTES`, or its hash is wrong.
        """
        try:
            return self._fetch(name)
        except InputError:
            raise
        except zipfile.BadZipFile as e:
            raise InputError(f"{self.called(name)}: is damaged ({e}); copy the zip again") from e
        except (OSError, RuntimeError, NotImplementedError, EOFError, zlib.error) as e:
            # RuntimeError: needs a password; NotImplementedError: an unknown compression
            why = (isinstance(e, OSError) and e.strerror) or e
            raise InputError(f"{self.called(name)}: cannot be read ({why}); copy it again") from e

    def decode(self, name: str, data: bytes, max_pixels: int = MAX_PIXELS) -> U8:
        """Return uint8 RGB `(H, W, 3)`, upright.

        Raises:
            InputError: As for `images.decode_picture`.
        """
        return decode_picture(BytesIO(data), self.called(name), max_pixels).rgb

    def __iter__(self) -> Iterator[tuple[str, U8]]:
        """Yield `(name, uint8 RGB)`; the first broken picture raises an InputError."""
        for name in self.names:
            yield name, self.decode(name, self.read(name))


def split_weight(entry: str) -> tuple[str, float]:
    """Split `ENTRY=WEIGHT`; what exists under the whole name has weight 1.

    Raises:
        InputError: The weight is not a finite number above zero.
    """
    place, equals, share = entry.rpartition("=")
    named, listed, _ = _split_list(entry)
    if not equals or (Path(named).exists() and (not listed or Path(listed).exists())):
        return entry, 1.0
    try:
        weight = float(share)
    except ValueError:
        weight = 0.0
    if not 0 < weight < float("inf"):
        raise InputError(f"{place}: its share {share!r} is not a number above zero; mend it")
    return place, weight


def open_source(entry: str) -> Source:
    """Open the pictures that an entry names.

    Args:
        entry: A folder (searched to its depth), a zip of pictures, a file from
            `fastrestore prepare`, or an LMDB of encoded pictures as StyleGAN-like programs write
            them (keys `256-00000`: the largest size is taken; or any other keys). `@LIST` takes
            the names in a text file only, one a line; `@list_eval_partition.txt:train` (or `val`,
            `test`) the official part of CelebA; with `CelebA-HQ-to-CelebA-mapping.txt` as the
            list and the former file beside it, that part of CelebA-HQ, whose names are numbers.

    Raises:
        InputError: No such place or list, not of such a kind, or damaged.
        MissingExtraError: It is an LMDB, and the package lmdb is not installed.
    """
    place, listed, part = _split_list(entry)
    path = Path(place)
    if (path / "data.mdb").is_file() or (path.is_file() and path.suffix in (".lmdb", ".mdb")):
        source = _lmdb(path)
    elif path.is_dir():
        source = _folder(path)
    elif path.is_file() and zipfile.is_zipfile(path):
        source = _zip(path)
    else:
        raise InputError(
            f"{label(place)}: no such folder, zip, packed file or LMDB of pictures; check the name"
        )
    if not listed:
        return source
    try:
        wanted = read_list(Path(listed), part)
        names, absent = choose(source.names, wanted, source.where)
    except BaseException:
        source._close()
        raise
    return replace(source, names=tuple(names), absent=absent and f"{label(listed)}: {absent}")


def _split_list(entry: str) -> tuple[str, str, str]:
    """Split `PLACE@LIST:PART`; what exists under the whole name has no list."""
    place, at, listed = entry.rpartition("@")
    if not at or Path(entry).exists():
        return entry, "", ""
    start, colon, part = listed.rpartition(":")
    return (place, start, part) if colon and part in PARTS else (place, listed, "")


def _in_order(names: list[str]) -> tuple[str, ...]:
    return tuple(sorted(names, key=PurePosixPath))  # folder by folder, wherever they come from


def _folder(path: Path) -> Source:
    def fetch(name: str) -> bytes:
        file = path / name
        _check_length(str(file), file.stat().st_size)
        return file.read_bytes()

    def hangs(p: Path) -> bool:  # a pipe or device: reading would wait without end
        return p.exists() and not p.is_file() and not p.is_dir()

    files = (p for p in path.rglob("*") if is_picture(p) and not hangs(p))
    names = [p.relative_to(path).as_posix() for p in files]
    return Source(str(path), _in_order(names), fetch)


def _check_length(name: str, length: int) -> None:
    if length > MAX_BYTES:
        raise InputError(
            f"{label(name)}: {length / 2**20:.0f} MiB, over the limit of {MAX_BYTES >> 20} MiB; "
            "make it smaller"
        )


def _zip(path: Path) -> Source:
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile, NotImplementedError) as e:
        raise InputError(f"{label(path)}: is no whole zip ({e}); copy it again") from e
    members = {m.filename: m for m in archive.infolist() if not m.is_dir()}

    def fetch(name: str) -> bytes:
        _check_length(f"{path}/{name}", members[name].file_size)
        return archive.read(members[name])  # never more than the size it claims

    # The folder of this name holds what macOS knows about the pictures, under their names.
    names = [n for n in members if is_picture(n) and not n.startswith("__MACOSX/")]
    source = Source(str(path), _in_order(names), fetch, _close=archive.close)
    if MANIFEST not in members:
        return source
    try:
        return _packed(source)
    except BaseException:
        archive.close()
        raise


def _packed(source: Source) -> Source:
    """Read a packed file by its manifest; a zip with another `manifest.json` stays a zip."""
    try:
        manifest = json.loads(source.read(MANIFEST))
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            return source
        if manifest["schema"] != SCHEMA:
            raise InputError(
                f"{label(source.where)}: is a packed file of another version; prepare it again"
            )
        rows = {f"{row['source']}/{row['name']}": row for row in manifest["pictures"]}
        sizes = {n: (int(row["height"]), int(row["width"])) for n, row in rows.items()}
        files = {n: (str(row["file"]), str(row["sha256"])) for n, row in rows.items()}
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        if isinstance(e, InputError):
            raise
        raise InputError(
            f"{label(source.where)}: its {MANIFEST} is damaged; prepare it again"
        ) from e

    def fetch(name: str) -> bytes:
        file, digest = files[name]
        try:
            data = source.read(file)
        except KeyError as e:
            raise InputError(f"{source.called(file)}: is missing; prepare the file again") from e
        if hashlib.sha256(data).hexdigest() != digest:
            raise InputError(f"{source.called(file)}: is not what was packed; prepare it again")
        return data

    return replace(source, names=tuple(files), _fetch=fetch, sizes=sizes)


def _lmdb(path: Path) -> Source:
    lmdb = need("lmdb", "lmdb")
    try:
        store = lmdb.open(
            str(path), subdir=path.is_dir(), readonly=True, lock=False, readahead=False
        )
        with store.begin(buffers=True) as look:
            # Short values are counts and labels.
            keys = [bytes(key) for key, value in look.cursor() if len(value) > 32]
    except lmdb.Error as e:
        raise InputError(f"{label(path)}: cannot be read as LMDB ({e}); copy it again") from e
    named = {key.decode(errors="backslashreplace"): key for key in keys}
    sized = {n: int(m[1]) for n in named if (m := re.fullmatch(r"(\d{1,6})-\d+", n))}
    if len(sized) == len(named):  # one store, several sizes
        largest = max(sized.values(), default=0)
        named = {n: key for n, key in named.items() if sized[n] == largest}

    def fetch(name: str) -> bytes:
        with store.begin(buffers=True) as look:
            value = look.get(named[name])
            _check_length(f"{path}/{name}", len(value))
            return bytes(value)

    names = sorted(named, key=lambda n: (len(n), n) if n.isdigit() else (0, n))
    return Source(str(path), tuple(names), fetch, _close=store.close)
