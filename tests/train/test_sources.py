"""Folders, zips, LMDB and lists as people have them, and what is wrong with them."""

from __future__ import annotations

import io
import struct
import sys
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastrestore.errors import InputError, MissingExtraError
from fastrestore.train import sources
from fastrestore.train.sources import open_source, split_weight


def png(level: int, side: int = 8) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), level, np.uint8)).save(file, "PNG")
    return file.getvalue()


def claims(width: int, height: int) -> bytes:
    """A PNG whose header claims a size and that holds nothing."""
    file = b"\x89PNG\r\n\x1a\n"
    for data in (b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT"):
        file += struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    return file


def folder(path: Path, names: Sequence[str]) -> str:
    for level, name in enumerate(names):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(png(level))
    return str(path)


def zipped(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> str:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return str(path)


def levels(entry: str) -> dict[str, int]:
    with open_source(entry) as source:
        return {name: int(rgb[0, 0, 0]) for name, rgb in source}


NAMES = ["b.png", "a/z.PNG", "a/b/ünï côdé 图.png", "c.jpeg"]
ORDER = ["a/b/ünï côdé 图.png", "a/z.PNG", "b.png", "c.jpeg"]


def test_folder_and_zip_hold_the_same(tmp_path: Path) -> None:
    place = folder(tmp_path / "f", NAMES)
    (tmp_path / "f" / "notes.txt").write_text("no picture")
    members = {name: (tmp_path / "f" / name).read_bytes() for name in NAMES}
    members |= {"notes.txt": b"x", "__MACOSX/a/._z.PNG": b"x", "empty/": b""}
    archive = zipped(tmp_path / "f.zip", members, zipfile.ZIP_DEFLATED)
    found = levels(place)
    assert list(found) == ORDER
    assert found == {name: NAMES.index(name) for name in ORDER}
    assert levels(archive) == found
    with open_source(archive) as source:
        assert source.called("b.png") == f"{archive}/b.png"


@pytest.mark.parametrize("members", [{}, {"notes.txt": b"x", "dataset.json": b"{}"}])
def test_zip_without_pictures_is_empty(tmp_path: Path, members: dict[str, bytes]) -> None:
    assert levels(zipped(tmp_path / "x.zip", members)) == {}


def test_member_names_never_touch_the_disk(tmp_path: Path) -> None:
    inside = tmp_path / "in"
    inside.mkdir()
    name = "../../escape.png"
    assert levels(zipped(inside / "x.zip", {name: png(9), "/abs.png": png(8)})) == {
        "/abs.png": 8,
        name: 9,
    }
    assert {p.name for p in tmp_path.rglob("*")} == {"in", "x.zip"}


def test_broken_members_are_one_line_each(tmp_path: Path) -> None:
    place = tmp_path / "x.zip"
    good = png(5, 64)
    archive = zipped(
        place,
        {
            "cut.png": good[:40],
            "huge.png": claims(20_000, 20_000),
            "text.png": b"x",
            "bad.png": good,
        },
    )
    data = bytearray(place.read_bytes())
    at = data.rfind(good) + len(good) - 20
    data[at] ^= 255
    place.write_bytes(data)
    reasons = {}
    with open_source(archive) as source:
        for name in source.names:
            with pytest.raises(InputError) as e:
                source.decode(name, source.read(name))
            reasons[name] = str(e.value)
    for name, reason in reasons.items():
        assert reason.startswith(f"{archive}/{name}: ")
        assert "\n" not in reason
    assert "400 million pixels" in reasons["huge.png"]
    assert "damaged" in reasons["bad.png"]


def test_member_that_unpacks_to_too_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "MAX_BYTES", 1 << 20)
    bomb = zipped(tmp_path / "x.zip", {"bomb.png": bytes(3 << 20)}, zipfile.ZIP_DEFLATED)
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "bomb.png").write_bytes(bytes(3 << 20))
    for entry in (bomb, str(tmp_path / "f")):
        with open_source(entry) as source, pytest.raises(InputError, match="3 MiB, over the limit"):
            source.read("bomb.png")


def test_password_and_no_zip(tmp_path: Path) -> None:
    archive = tmp_path / "x.zip"
    zipped(archive, {"a.png": png(1)})
    data = bytearray(archive.read_bytes())
    data[6] |= 1
    data[data.find(b"PK\1\2") + 8] |= 1  # both headers say that it is encrypted
    archive.write_bytes(data)
    with open_source(str(archive)) as source, pytest.raises(InputError, match=r"x\.zip/a\.png: "):
        source.read("a.png")
    for data in (b"no zip at all", b"PK\3\4" + bytes(40)):
        archive.write_bytes(data)
        with pytest.raises(InputError, match=r"x\.zip: no such folder, zip"):
            open_source(str(archive))
    with pytest.raises(InputError, match="absent: no such folder"):
        open_source(str(tmp_path / "absent"))


def test_weight_is_split_from_what_does_not_exist(tmp_path: Path) -> None:
    place = folder(tmp_path / "sigma=0", ["a.png", "b.png"])
    (tmp_path / "l=1.txt").write_text("a.png")
    listed = f"{place}@{tmp_path / 'l=1.txt'}"
    for entry in (place, listed):
        assert split_weight(entry) == (entry, 1.0)
        assert split_weight(f"{entry}=0.25") == (entry, 0.25)
    with pytest.raises(InputError, match="'much' is not a number"):
        split_weight("somewhere=much")


def test_list_takes_names_without_folder_or_suffix(tmp_path: Path) -> None:
    place = folder(tmp_path / "f", ["x/1.png", "x/2.png", "3.png", "4.png", "with space.png"])
    names = tmp_path / "names.txt"
    names.write_text("\ufeffx/1.png\r\n2.jpg\n\n4\nwith space.png\nabsent.png\n", encoding="utf-8")
    with open_source(f"{place}@{names}") as source:
        assert source.names == ("4.png", "with space.png", "x/1.png", "x/2.png")
        assert source.absent == (f"{names}: 1 of 5 names are not in {place}, such as 'absent.png'")
    archive = zipped(tmp_path / "f.zip", {"x/2.png": png(2), "9.png": png(9)})
    assert levels(f"{archive}@{names}") == {"x/2.png": 2}


def test_at_sign_may_be_part_of_a_name(tmp_path: Path) -> None:
    place = folder(tmp_path / "me@home", ["a.png", "b.png"])
    (tmp_path / "l.txt").write_text("b.png")
    assert levels(place) == {"a.png": 0, "b.png": 1}
    assert levels(f"{place}@{tmp_path / 'l.txt'}") == {"b.png": 1}


def test_wrong_lists_are_named(tmp_path: Path) -> None:
    place = folder(tmp_path / "f", ["x/1.png", "y/1.png", "3.png"])
    files = {
        "two.txt": b"1.png",
        "none.txt": b"8.png\n9.png",
        "empty.txt": b"",
        "bytes.txt": b"\xff",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "plain.txt").write_text("3.png")
    (tmp_path / "parts.txt").write_text("3.png 0\nx/1.png 2")
    cases = {
        "two.txt": "fits x/1.png and y/1.png",
        "none.txt": "none of the 2 names",
        "empty.txt": "none of the 0 names",
        "bytes.txt": "is no text",
        "absent.txt": "no such list",
        "plain.txt:train": "leave out :train",
        "parts.txt": "write :train, :val or :test",
        "parts.txt:val": "none of the 0 names",
    }
    for listed, message in cases.items():
        with pytest.raises(InputError, match=message) as e:
            open_source(f"{place}@{tmp_path / listed}")
        assert "\n" not in str(e.value)


@pytest.mark.parametrize("form", ["{} {}\n", "{},{}\n"])
def test_parts_of_celeba(tmp_path: Path, form: str) -> None:
    place = folder(tmp_path / "img", [f"{i:06}.png" for i in range(1, 7)])
    parts = tmp_path / "list_eval_partition.txt"
    head = "image_id,partition\n" if "," in form else ""
    codes = (0, 0, 1, 2, 2, 0)
    rows = [form.format(f"{i:06}.jpg", code) for i, code in enumerate(codes, 1)]
    parts.write_text(head + "".join(rows))
    got = {p: [int(n[:6]) for n in levels(f"{place}@{parts}:{p}")] for p in sources.PARTS}
    assert got == {"train": [1, 2, 6], "val": [3], "test": [4, 5]}


def test_parts_of_celebahq(tmp_path: Path) -> None:
    """Pictures 0 to 3 are made of originals 9, 3, 7 and 1."""
    (tmp_path / "list_eval_partition.txt").write_text(
        "000001.jpg 0\n000003.jpg 2\n000007.jpg 1\n000009.jpg 2\n"
    )
    mapping = tmp_path / "CelebA-HQ-to-CelebA-mapping.txt"
    originals = (9, 3, 7, 1)
    rows = [f"{i}\t\t{o - 1}\t\t{o:06}.jpg\n" for i, o in enumerate(originals)]
    mapping.write_text("idx\t\torig_idx\t\torig_file\n" + "".join(rows))
    for names in ([f"{i}.jpg" for i in range(4)], [f"{i:05}.png" for i in range(4)]):
        place = folder(tmp_path / names[0], names)
        got = {p: [*levels(f"{place}@{mapping}:{p}").values()] for p in sources.PARTS}
        assert got == {"train": [3], "val": [2], "test": [0, 1]}
    with pytest.raises(InputError, match="write :train"):
        open_source(f"{place}@{mapping}")
    (tmp_path / "list_eval_partition.txt").unlink()
    with pytest.raises(InputError, match=r"list_eval_partition\.txt: no such list"):
        open_source(f"{place}@{mapping}:test")


def make_lmdb(path: Path, pairs: dict[str, bytes], subdir: bool = True) -> str:
    lmdb = pytest.importorskip("lmdb", reason="lmdb is not installed")
    store = lmdb.open(str(path), map_size=1 << 20, subdir=subdir, lock=False)
    with store.begin(write=True) as change:
        for key, value in pairs.items():
            change.put(key.encode(), value)
    store.close()
    return str(path)


def test_lmdb_of_several_sizes_gives_the_largest(tmp_path: Path) -> None:
    pairs = {f"{size}-{i:05}": png(i, size) for size in (8, 16) for i in range(3)}
    place = make_lmdb(tmp_path / "ffhq.lmdb", {**pairs, "length": b"3", "label-00000": b"1"})
    with open_source(place) as source:
        assert source.names == ("16-00000", "16-00001", "16-00002")
        assert [rgb.shape for _, rgb in source] == [(16, 16, 3)] * 3
    (tmp_path / "l.txt").write_text("16-00002")
    assert levels(f"{place}@{tmp_path / 'l.txt'}") == {"16-00002": 2}


def test_lmdb_of_plain_numbers_in_a_single_file(tmp_path: Path) -> None:
    place = make_lmdb(tmp_path / "x.mdb", {str(i): png(i) for i in range(11)}, subdir=False)
    assert levels(place) == {str(i): i for i in range(11)}  # 10 after 9


def test_damaged_lmdb_and_raw_values(tmp_path: Path) -> None:
    place = make_lmdb(tmp_path / "raw", {"0": bytes(192)})
    with open_source(place) as source, pytest.raises(InputError, match="raw/0: is not a picture"):
        list(source)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "data.mdb").write_bytes(b"no store")
    with pytest.raises(InputError, match="bad: cannot be read as LMDB"):
        open_source(str(tmp_path / "bad"))


def test_lmdb_without_the_package_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data.mdb").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fastrestore\[lmdb\]'"):
        open_source(str(tmp_path))


def test_nothing_stays_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = zipped(tmp_path / "x.zip", {"a.png": png(1)})
    with open_source(archive) as source:
        pass
    with pytest.raises(ValueError, match="closed"):
        source._fetch("a.png")
    opened = []
    real = zipfile.ZipFile

    def spy(*args: object) -> zipfile.ZipFile:
        opened.append(real(*args))  # type: ignore[call-overload]
        return opened[-1]

    monkeypatch.setattr(zipfile, "ZipFile", spy)
    with pytest.raises(InputError):
        open_source(f"{archive}@{tmp_path / 'absent.txt'}")
    assert [z.fp for z in opened] == [None]
