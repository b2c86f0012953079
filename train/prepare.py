"""`fastrestore prepare`: one packed file of pictures, scaled once, with a hash for each.

It is a plain zip, stored, of WebP files and `manifest.json`: any tool opens it.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import click

from fastrestore.arrays import U8
from fastrestore.atomic import label
from fastrestore.errors import FastRestoreError, InputError, OutputError
from fastrestore.train.sources import FORMAT, MANIFEST, SCHEMA, Source, open_source, split_weight

_WEBP_SIDE = 16383  # px, the most that WebP holds
CROPS = ("none", "center")


@dataclass(slots=True)
class Packed:
    """What a packed file holds and what was left out; `manifest.json` has these fields.

    Attributes:
        pictures: Rows of `file`, `name`, `source`, `input_sha256`, `sha256`, `width`, `height`.
        skipped: One line each: broken, too small, named in a list but absent.
        duplicates: Rows of `name`, `source`, `same_as`.
    """

    pictures: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    duplicates: list[dict[str, str]] = field(default_factory=list)


def scale(rgb: U8, size: int, crop: str) -> U8:
    """Scale the short side down to `size` px, and cut the middle square if `crop` is `center`.

    Lanczos as Pillow does it: its support grows with the factor, so that nothing aliases. A box
    (OpenCV's INTER_AREA) lets fine texture alias and is softer; CelebA-HQ and FFHQ at 256 were
    commonly made by such a Lanczos, too.

    Args:
        rgb: uint8 `(H, W, 3)`, no side below `size`.
        size: 0 = keep.
        crop: `none` or `center`.
    """
    import numpy as np
    from PIL import Image

    if crop == "center":  # before scaling: the same pixels with less work
        h, w = rgb.shape[:2]
        side = min(h, w)
        y, x = (h - side) // 2, (w - side) // 2
        rgb = rgb[y : y + side, x : x + side]
    h, w = rgb.shape[:2]
    if not size or min(h, w) == size:
        return rgb
    new = (max(size, round(w * size / min(h, w))), max(size, round(h * size / min(h, w))))
    image = Image.fromarray(np.ascontiguousarray(rgb))
    return np.asarray(image.resize(new, Image.Resampling.LANCZOS))


def encode(rgb: U8, quality: int) -> tuple[str, bytes]:
    """Return suffix and bytes: WebP (lossless at quality 0), or PNG beyond its largest side."""
    import numpy as np
    from PIL import Image

    file, image = BytesIO(), Image.fromarray(np.ascontiguousarray(rgb))
    if max(rgb.shape) > _WEBP_SIDE:
        image.save(file, "PNG")
        return ".png", file.getvalue()
    if quality:
        image.save(file, "WEBP", quality=quality, method=4)
    else:  # method 4: 7 % less for six times the time
        image.save(file, "WEBP", lossless=True, exact=True, quality=20, method=1)
    return ".webp", file.getvalue()


def pack(
    entries: tuple[str, ...],
    output: str | os.PathLike[str],
    *,
    size: int = 0,
    crop: str = "none",
    quality: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Packed:
    """Write a packed file; the same input gives the same bytes.

    Args:
        entries: What `sources.open_source` takes.
        output: The file; it is there when complete, not before.
        size: Short side in px; smaller pictures are skipped. 0 = keep all as they are.
        crop: `none` or `center`, the middle square.
        quality: 0 = lossless, else WebP's 1 to 100.
        progress: Called with entry, pictures done and in all.

    Raises:
        InputError: An entry cannot be opened, or no picture is left.
        OutputError: The file cannot be written.
    """
    done = Packed()
    settings = {"format": FORMAT, "schema": SCHEMA, "size": size, "crop": crop, "quality": quality}
    with _whole(output) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for entry in entries:
            with open_source(entry) as source:
                for name, digest, rgb in _read(source, size, done, progress):
                    scaled = scale(rgb, size, crop)
                    suffix, data = encode(scaled, quality)
                    row = _store(archive, f"{len(done.pictures):06}{suffix}", data, scaled)
                    about = {"name": name, "source": source.where, "input_sha256": digest}
                    done.pictures.append(about | row)
        if not done.pictures:
            why = f"; {done.skipped[0]}" if done.skipped else ""
            raise InputError(f"{label(entries[0])}: holds no picture to pack{why}")
        text = json.dumps(settings | asdict(done), indent=1)
        archive.writestr(zipfile.ZipInfo(MANIFEST), text)
    return done


def _read(
    source: Source, size: int, done: Packed, progress: Callable[[str, int, int], None] | None
) -> Iterator[tuple[str, str, U8]]:
    """Yield name, hash of the file, and pixels; note the rest in `done`."""
    seen = {row["input_sha256"]: f"{row['source']}/{row['name']}" for row in done.pictures}
    if source.absent:
        done.skipped.append(source.absent)
    for i, name in enumerate(source.names):
        if progress:
            progress(source.where, i, len(source.names))
        try:
            data = source.read(name)
            digest = hashlib.sha256(data).hexdigest()
            if digest in seen:
                row = {"name": name, "source": source.where, "same_as": seen[digest]}
                done.duplicates.append(row)
                continue
            rgb = source.decode(name, data)
        except InputError as e:
            done.skipped.append(str(e))
            continue
        if min(rgb.shape[:2]) < size:
            h, w = rgb.shape[:2]
            done.skipped.append(f"{source.called(name)}: {w}x{h} is smaller than {size} px")
            continue
        seen[digest] = f"{source.where}/{name}"
        yield name, digest, rgb


def _store(archive: zipfile.ZipFile, file: str, data: bytes, rgb: U8) -> dict[str, Any]:
    """Add a member without a date: the same pictures make the same file."""
    archive.writestr(zipfile.ZipInfo(file), data)
    digest = hashlib.sha256(data).hexdigest()
    return {"file": file, "sha256": digest, "width": rgb.shape[1], "height": rgb.shape[0]}


@contextmanager
def _whole(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a file that appears under its name when the block ends well, and else not at all."""
    target = Path(path)
    part = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with open(part, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    except OSError as e:
        if isinstance(e, FastRestoreError):
            raise
        raise OutputError(
            f"{label(path)}: cannot be written ({e.strerror}); choose another folder or disk"
        ) from e
    finally:
        part.unlink(missing_ok=True)


@click.command("prepare", no_args_is_help=True)
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.option("-o", "--output", required=True, metavar="FILE", help="For example data.frpack.")
@click.option(
    "--size", type=click.IntRange(0, 16384), default=0, help="Short side in px.  [0 = keep]"
)
@click.option(
    "--crop", type=click.Choice(CROPS), default="none", help="center: the middle square.  [none]"
)
@click.option("--quality", type=click.IntRange(0, 100), default=0, help="Of WebP.  [0 = lossless]")
@click.option("--overwrite", is_flag=True, help="Replace a file that exists.")
@click.option("-q", "--quiet", is_flag=True, help="Say only what went wrong.")
def command(
    sources: tuple[str, ...],
    output: str,
    size: int,
    crop: str,
    quality: int,
    overwrite: bool,
    quiet: bool,
) -> int:
    """Pack pictures into one file for `fastrestore train --data FILE`.

    A SOURCE is a folder, a zip, an LMDB or another packed file. SOURCE@LIST takes the names in a
    text file; SOURCE@list_eval_partition.txt:train (val, test) a part of CelebA.

    \b
    fastrestore prepare ffhq/ photos.zip -o data.frpack --size 256 --crop center
    fastrestore prepare CelebA-HQ-img@CelebA-HQ-to-CelebA-mapping.txt:train -o celebahq.frpack
    """
    from fastrestore.commands.options import progress_bar

    target = Path(output)
    if target.is_dir():
        raise OutputError(f"{label(output)}: is a folder; name a file in it")
    if target.exists() and not overwrite:
        raise OutputError(f"{label(output)}: exists; use --overwrite")
    places = (split_weight(source)[0].rpartition("@")[0] or source for source in sources)
    if os.path.realpath(output) in {os.path.realpath(place) for place in places}:
        raise InputError(f"{label(output)}: would replace its own source; choose another -o")
    with progress_bar(quiet) as bar:
        task = bar.add_task("prepare", figures="")

        def show(where: str, i: int, n: int) -> None:
            bar.update(task, description=where, completed=i, total=n, figures=f"{i} of {n}")

        done = pack(sources, output, size=size, crop=crop, quality=quality, progress=show)
    for line in done.skipped:
        click.echo(f"skipped {line}", err=True)
    if not quiet:
        for row in done.duplicates:
            name = label(f"{row['source']}/{row['name']}")
            click.echo(f"left out {name}: the same file as {label(row['same_as'])}", err=True)
        n, mib = len(done.pictures), target.stat().st_size / 2**20
        click.echo(
            f"{label(output)}: {n} pictures, {mib:.1f} MiB; {len(done.skipped)} skipped, "
            f"{len(done.duplicates)} duplicates",
            err=True,
        )
    return 1 if done.skipped else 0
