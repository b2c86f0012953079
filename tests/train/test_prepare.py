"""The packed file: what is in it, what is not, and that it is whole or absent."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from fastrestore.errors import InputError, OutputError
from fastrestore.train import prepare
from fastrestore.train.data import Pictures
from fastrestore.train.prepare import encode, pack, scale
from fastrestore.train.sources import open_source


def write(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


def noise(seed: int, h: int = 40, w: int = 50) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8)


def make_folder(path: Path, n: int = 4) -> str:
    for i in range(n):
        write(path / f"{i}.png", noise(i))
    return str(path)


def manifest(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        kinds = {(m.compress_type, m.date_time[0]) for m in archive.infolist()}
        assert kinds == {(zipfile.ZIP_STORED, 1980)}
        read: dict[str, Any] = json.loads(archive.read("manifest.json"))
        return read


def run(*args: object) -> tuple[int, str]:
    done = CliRunner().invoke(prepare.command, [str(a) for a in args], standalone_mode=False)
    if done.exception:
        raise done.exception
    return done.return_value, done.output


def test_packed_pictures_are_the_same_to_the_bit(tmp_path: Path) -> None:
    place = make_folder(tmp_path / "f")
    write(tmp_path / "f" / "sub" / "ünï 图.png", noise(9, 33, 70))
    out = tmp_path / "d.frpack"
    assert run(place, "-o", out)[0] == 0
    with open_source(str(out)) as packed, open_source(place) as loose:
        assert packed.names == tuple(f"{place}/{name}" for name in loose.names)
        for (_, a), (_, b) in zip(packed, loose, strict=True):
            assert np.array_equal(a, b)
        assert packed.sizes[f"{place}/sub/ünï 图.png"] == (33, 70)
    rows = manifest(out)["pictures"]
    with zipfile.ZipFile(out) as archive:
        for row in rows:
            original = (Path(place) / row["name"]).read_bytes()
            assert row["input_sha256"] == hashlib.sha256(original).hexdigest()
            assert row["sha256"] == hashlib.sha256(archive.read(row["file"])).hexdigest()


def test_same_input_same_bytes(tmp_path: Path) -> None:
    place = make_folder(tmp_path / "f")
    files = [tmp_path / name for name in ("a.frpack", "b.frpack")]
    for file in files:
        pack((place,), file, size=20, crop="center", quality=80)
        os.utime(place, (1, 1))
    assert files[0].read_bytes() == files[1].read_bytes()


def test_train_reads_it_and_lists_choose_from_it(tmp_path: Path) -> None:
    out = tmp_path / "d.frpack"
    pack((make_folder(tmp_path / "f", 12),), out, size=32)
    pictures = Pictures.load((f"{out}=0.5",), 2, 32)
    assert (len(pictures.train), len(pictures.held_out), pictures.skipped) == (10, 2, [])
    (tmp_path / "l.txt").write_text("3.png\n7.jpg")
    with open_source(f"{out}@{tmp_path / 'l.txt'}") as source:
        assert [Path(n).name for n in source.names] == ["3.png", "7.png"]


def test_packing_a_packed_file_keeps_hashes_honest(tmp_path: Path) -> None:
    first, second = tmp_path / "a.frpack", tmp_path / "b.frpack"
    pack((make_folder(tmp_path / "f"),), first)
    pack((str(first),), second, size=16)
    before, after = manifest(first)["pictures"], manifest(second)["pictures"]
    assert [r["input_sha256"] for r in after] == [r["sha256"] for r in before]


@pytest.mark.parametrize(
    ("shape", "size", "crop", "expected"),
    [
        ((40, 60), 20, "none", (20, 30)),
        ((60, 40), 20, "none", (30, 20)),
        ((40, 61), 20, "center", (20, 20)),
        ((40, 60), 0, "center", (40, 40)),
        ((40, 60), 0, "none", (40, 60)),
        ((20, 999), 20, "none", (20, 999)),
        ((4001, 3), 1, "none", (1334, 1)),
    ],
)
def test_scale(shape: tuple[int, int], size: int, crop: str, expected: tuple[int, int]) -> None:
    assert scale(noise(0, *shape), size, crop).shape == (*expected, 3)


def test_scale_does_not_alias() -> None:
    """Stripes finer than the new pixels become their mean, everywhere."""
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.ptp(scale(stripes, 100, "none")[5:-5, 5:-5].astype(int)) <= 16
    middle = np.zeros((10, 30, 3), np.uint8)
    middle[:, 10:20] = 255
    assert scale(middle, 10, "center").min() == 255


def test_encoding_is_lossless_or_of_a_quality() -> None:
    picture, long = noise(0), np.zeros((1, 16384, 3), np.uint8)
    assert encode(picture, 0)[0] == ".webp"
    assert len(encode(picture, 50)[1]) < len(encode(picture, 95)[1]) < len(encode(picture, 0)[1])
    assert encode(long, 0)[0] == ".png"


def test_what_is_left_out_is_listed(tmp_path: Path) -> None:
    place = make_folder(tmp_path / "f")
    write(tmp_path / "f" / "small.png", noise(5, 12, 90))
    (tmp_path / "f" / "broken.jpg").write_bytes(b"no picture")
    again = tmp_path / "g"
    again.mkdir()
    (again / "copy.png").write_bytes((tmp_path / "f" / "2.png").read_bytes())
    (tmp_path / "l.txt").write_text("copy.png\nabsent.png")
    out = tmp_path / "d.frpack"
    code, said = run(place, f"{again}@{tmp_path / 'l.txt'}", "-o", out, "--size", 20)
    about = manifest(out)
    assert code == 1
    assert len(about["pictures"]) == 4
    assert len(about["skipped"]) == 3
    assert f"{place}/small.png: 90x12 is smaller than 20 px" in about["skipped"]
    assert any(line.startswith(f"{place}/broken.jpg: ") for line in about["skipped"])
    assert any("1 of 2 names are not in" in line for line in about["skipped"])
    for line in about["skipped"]:
        assert f"skipped {line}\n" in said
    assert about["duplicates"] == [
        {"name": "copy.png", "source": str(again), "same_as": f"{place}/2.png"}
    ]
    assert f"left out {again}/copy.png: the same file as {place}/2.png" in said


def test_nothing_usable_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    out = tmp_path / "d.frpack"
    with pytest.raises(InputError, match=r"holds no picture to pack$"):
        run(tmp_path / "f", "-o", out)
    (tmp_path / "f" / "x.png").write_bytes(b"x")
    with pytest.raises(InputError, match=r"holds no picture to pack; .*x\.png: ") as e:
        run(tmp_path / "f", "-o", out)
    assert e.value.exit_code == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError(28, "No space left")])
def test_an_end_in_the_middle_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    place, out = make_folder(tmp_path / "f"), tmp_path / "d.frpack"
    out.write_bytes(b"what was there")
    calls = []

    def fail(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 3:
            raise error
        return encode(*args)

    monkeypatch.setattr(prepare, "encode", fail)
    kind = OutputError if isinstance(error, OSError) else error
    with pytest.raises(kind):  # type: ignore[arg-type]
        pack((place,), out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.frpack", "f"]
    assert out.read_bytes() == b"what was there"


def test_outputs_that_cannot_be(tmp_path: Path) -> None:
    place = make_folder(tmp_path / "f")
    out = tmp_path / "d.frpack"
    out.write_bytes(b"mine")
    for target, message in (
        (out, "exists; use --overwrite"),
        (tmp_path, "is a folder"),
        (tmp_path / "no" / "d.frpack", "cannot be written"),
    ):
        with pytest.raises(OutputError, match=message):
            run(place, "-o", target)
    assert out.read_bytes() == b"mine"


def rewrite(path: Path, change: dict[str, bytes | None]) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {n: archive.read(n) for n in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (members | change).items():
            if data is not None:
                archive.writestr(name, data)


def test_a_changed_picture_is_found_on_reading(tmp_path: Path) -> None:
    out = tmp_path / "d.frpack"
    place = make_folder(tmp_path / "f", 8)
    pack((place,), out)
    rewrite(out, {"000001.webp": encode(noise(99), 0)[1], "000002.webp": None})
    with open_source(str(out)) as source:
        with pytest.raises(InputError, match=r"000001\.webp: is not what was packed"):
            source.read(f"{place}/1.png")
        with pytest.raises(InputError, match=r"000002\.webp: is missing"):
            source.read(f"{place}/2.png")
    pictures = Pictures.load((str(out),), 1, 32)
    assert len(pictures.train) == 5
    assert len(pictures.skipped) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format": "fastrestore-pack"', "is damaged"),
        ('{"format": "fastrestore-pack"}', "is damaged"),
        ('{"format": "fastrestore-pack", "schema": 2}', "of another version"),
        ('{"format": "fastrestore-pack", "schema": 1, "pictures": [1]}', "is damaged"),
        ('{"format": "fastrestore-pack", "schema": 1, "pictures": [{"file": 1}]}', "is damaged"),
    ],
)
def test_damaged_manifests(tmp_path: Path, text: str, message: str) -> None:
    out = tmp_path / "d.frpack"
    pack((make_folder(tmp_path / "f"),), out)
    rewrite(out, {"manifest.json": text.encode()})
    with pytest.raises(InputError, match=message):
        open_source(str(out))


def test_a_manifest_of_something_else_is_no_matter(tmp_path: Path) -> None:
    out = tmp_path / "x.zip"
    pack((make_folder(tmp_path / "f"),), out)
    rewrite(out, {"manifest.json": b'["an extension of a browser"]'})
    with open_source(str(out)) as source:
        assert source.names == tuple(f"{i:06}.webp" for i in range(4))
