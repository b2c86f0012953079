"""Pictures in memory and the batches drawn from them."""

from __future__ import annotations

import logging
import struct
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastrestore.errors import InputError
from fastrestore.train import portraits
from fastrestore.train.data import Pictures, Sampler
from fastrestore.train.memory import Encoded, free_gib
from fastrestore.train.prepare import pack

CROP = 16


def flat(level: int, height: int = 40, width: int = 50) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


def write(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


def make_folder(folder: Path, levels: range) -> str:
    """Write one flat picture a level: the level tells which picture a crop is from."""
    for level in levels:
        write(folder / f"{level:03}.png", flat(level))
    return str(folder)


def make_sampler(train: list[np.ndarray], seed: int = 0, **changes: Any) -> Sampler:
    pictures = Pictures(train, np.full(len(train), 1 / len(train)), [], [])
    settings = {"noisy": 0.5, "max_sigma": 50.0, "max_ratio": 0.6, "bank": 40} | changes
    return Sampler(pictures, np.random.default_rng(seed), CROP, **settings)


def near(share: float, expected: float, n: int) -> bool:
    """Within four standard deviations of a share counted over n draws."""
    return abs(share - expected) < 4 * (expected * (1 - expected) / n) ** 0.5


def levels(pictures: list[np.ndarray]) -> set[int]:
    return {int(p[0, 0, 0]) for p in pictures}


def test_load_splits_without_loss(tmp_path: Path) -> None:
    pictures = Pictures.load((make_folder(tmp_path, range(10, 30)),), 4, 32)
    assert len(pictures.held_out) == 4
    assert levels(pictures.train) | levels(pictures.held_out) == set(range(10, 30))
    assert not levels(pictures.train) & levels(pictures.held_out)
    assert pictures.weights == pytest.approx([1 / 16] * 16)
    assert pictures.skipped == []
    assert all(p.dtype == np.uint8 and p.shape == (40, 50, 3) for p in pictures.train)


def test_load_is_repeatable(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, range(20))
    first, again = (Pictures.load((folder,), 3, 32) for _ in range(2))
    for a, b in ((first.train, again.train), (first.held_out, again.held_out)):
        assert [p[0, 0, 0] for p in a] == [p[0, 0, 0] for p in b]


def test_held_out_pictures_are_spread(tmp_path: Path) -> None:
    """Over the folder and over all folders: file names often sort by source."""
    a, b = make_folder(tmp_path / "a", range(40)), make_folder(tmp_path / "b", range(100, 120))
    held = sorted(levels(Pictures.load((a, b), 8, 32).held_out))
    assert sum(level < 100 for level in held) == 4
    assert {level // 10 for level in held if level < 100} == {0, 1, 2, 3}


def test_weights_are_by_folder(tmp_path: Path) -> None:
    a, b = make_folder(tmp_path / "a", range(10)), make_folder(tmp_path / "b", range(100, 140))
    pictures = Pictures.load((f"{a}=0.7", f"{b}=0.3"), 2, 32)
    assert pictures.weights.sum() == pytest.approx(1)
    from_a = np.array([p[0, 0, 0] < 100 for p in pictures.train])
    assert pictures.weights[from_a].sum() == pytest.approx(0.7)
    sampler = Sampler(
        pictures, np.random.default_rng(1), CROP, noisy=0.5, max_sigma=9, max_ratio=0.6, bank=20
    )
    drawn = sampler.batch(600).clean
    assert near(float((drawn[:, 0, 0, 0] < 100).mean()), 0.7, 600)
    assert set(drawn[:, 0, 0, 0]) <= levels(pictures.train)
    assert not set(drawn[:, 0, 0, 0]) & levels(pictures.held_out)


def test_files_are_found_below_and_in_any_case(tmp_path: Path) -> None:
    make_folder(tmp_path, range(6))
    write(tmp_path / "sub" / "deep er" / "X.JPEG", flat(200))
    write(tmp_path / "Y.WebP", flat(210))
    (tmp_path / "notes.txt").write_text("no picture")
    pictures = Pictures.load((str(tmp_path),), 1, 32)
    assert len(pictures.train) + len(pictures.held_out) == 8
    assert pictures.skipped == []


def test_folder_name_may_hold_an_equals_sign(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "sigma=0", range(8))
    assert len(Pictures.load((folder,), 1, 32).train) == 7
    assert len(Pictures.load((f"{folder}=0.5",), 1, 32).train) == 7


def claims(width: int, height: int) -> bytes:
    """A PNG whose header claims a size and that holds nothing."""
    data = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    return b"\x89PNG\r\n\x1a\n" + chunk


def test_broken_files_are_skipped_and_named(tmp_path: Path) -> None:
    make_folder(tmp_path, range(8))
    whole = (tmp_path / "000.png").read_bytes()
    broken = {
        "cut.png": whole[: len(whole) // 2],
        "cut.tif": b"II*\0\x08\0\0\0\x01\0",
        "empty.jpg": b"",
        "gigantic.png": claims(20_000, 20_000),
        "large.png": claims(10_000, 10_001),
        "text.webp": b"no picture at all",
    }
    for name, data in broken.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "folder.png").mkdir()
    write(tmp_path / "small.png", flat(9, 31, 400))
    pictures = Pictures.load((str(tmp_path),), 2, 32)
    assert len(pictures.train) == 6
    names = sorted([*broken, "folder.png", "small.png"])
    assert len(pictures.skipped) == len(names)
    for name, line in zip(names, sorted(pictures.skipped), strict=True):
        assert line.startswith(f"{tmp_path / name}: ")
        assert "\n" not in line


def test_deep_and_grey_pictures_look_as_they_should(tmp_path: Path) -> None:
    make_folder(tmp_path, range(6))
    Image.fromarray(np.full((40, 40), 100 * 257, np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(np.full((40, 40), 50, np.uint8)).save(tmp_path / "grey.png")
    Image.fromarray(flat(150)).quantize(4).save(tmp_path / "palette.png")
    pictures = Pictures.load((str(tmp_path),), 1, 32)
    assert levels(pictures.train + pictures.held_out) == {*range(6), 50, 100, 150}


def test_photos_stand_upright(tmp_path: Path) -> None:
    make_folder(tmp_path, range(6))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.fromarray(flat(99)).save(tmp_path / "turned.jpg", exif=exif)
    pictures = Pictures.load((str(tmp_path),), 1, 32)
    shapes = {p.shape[:2] for p in pictures.train + pictures.held_out if p[0, 0, 0] > 90}
    assert shapes == {(50, 40)}


@pytest.mark.parametrize("n", [0, 1, 4])
def test_too_few_pictures_are_refused(tmp_path: Path, n: int) -> None:
    """Also where one of several folders is nearly empty: its share would be a handful."""
    many, few = make_folder(tmp_path / "many", range(20)), tmp_path / "few"
    few.mkdir()
    make_folder(few, range(n))
    for folders, held_out in (((str(few),), 2), ((many, str(few)), 4)):
        with pytest.raises(InputError, match=rf"few: {n} usable pictures"):
            Pictures.load(folders, held_out, 32)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for name in ("absent", "file"):
        with pytest.raises(InputError, match=f"{name}: no such folder"):
            Pictures.load((str(tmp_path / name),), 2, 32)


@pytest.mark.parametrize("share", ["much", "0", "-1", "nan", "inf", "1e400"])
def test_share_must_be_a_positive_number(tmp_path: Path, share: str) -> None:
    folder = make_folder(tmp_path, range(8))
    with pytest.raises(InputError) as e:
        Pictures.load((f"{folder}={share}",), 2, 32)
    assert share in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("n", [1, 5])
def test_batch_has_exact_shapes_and_types(n: int) -> None:
    batch = make_sampler([flat(7), flat(8, CROP, CROP)]).batch(n)
    plane = (n, CROP, CROP)
    shapes = [(n, CROP, CROP, 3), plane, plane, (n,), plane]
    types = [np.uint8, np.uint8, np.uint8, np.float32, np.float32]
    assert [a.shape for a in batch] == shapes
    assert [a.dtype for a in batch] == types
    assert set(np.unique(batch.mask)) <= {0, 1}
    assert set(np.unique(batch.trusted)) <= {0, 1}


def test_same_seed_same_batches() -> None:
    rng = np.random.default_rng(5)
    train = [rng.integers(0, 256, (40, 50, 3), np.uint8) for _ in range(3)]
    first, again, other = (make_sampler(train, seed) for seed in (0, 0, 1))
    for _ in range(3):
        batches = [s.batch(4) for s in (first, again, other)]
        assert all(np.array_equal(a, b) for a, b in zip(*batches[:2], strict=True))
        assert not np.array_equal(batches[0].clean, batches[2].clean)


def test_state_of_the_generator_is_all_that_a_resumed_run_needs() -> None:
    rng = np.random.default_rng(5)
    train = [rng.integers(0, 256, (40, 50, 3), np.uint8) for _ in range(3)]
    going = make_sampler(train)
    going.batch(4)
    resumed = make_sampler(train, 77)
    resumed.rng.bit_generator.state = going.rng.bit_generator.state
    for a, b in zip(going.batch(4), resumed.batch(4), strict=True):
        assert np.array_equal(a, b)


def test_shares_of_a_large_batch() -> None:
    n = 1500
    batch = make_sampler([flat(7)], noisy=0.3, max_sigma=40.0).batch(n)
    noisy, holes = batch.sigma > 0, batch.mask.any((1, 2))
    assert near(float(noisy.mean()), 0.3, n)
    assert batch.sigma.max() <= 40
    # weak noise more often: half of it below a quarter of the strongest
    assert near(float((batch.sigma[noisy] > 10).mean()), 0.5, int(noisy.sum()))
    assert holes[~noisy].all()  # a clean sample without a hole would teach nothing
    assert batch.mask[holes].mean((1, 2)).min() >= 0.01
    assert near(float(holes[noisy].mean()), 0.5, int(noisy.sum()))
    single = (batch.frames == 1).all((1, 2))
    assert near(float(single.mean()), 0.5, n)
    assert batch.frames.min() >= 1
    assert batch.frames.max() <= 15
    assert batch.frames[~single].max(axis=(1, 2)).mean() > 5


def test_trust_lies_inside_the_hole_only() -> None:
    n = 1500
    batch = make_sampler([flat(7)]).batch(n)
    assert not (batch.trusted & ~batch.mask & 1).any()
    holes, trusts = batch.mask.any((1, 2)), batch.trusted.any((1, 2))
    assert 0.1 < trusts[holes].mean() < 0.35  # three in ten, less those that miss the hole


@pytest.mark.parametrize("noisy", [0.0, 1.0])
def test_all_or_none_may_be_noisy(noisy: float) -> None:
    assert set(make_sampler([flat(7)], noisy=noisy).batch(50).sigma > 0) == {bool(noisy)}


def test_crop_is_a_part_of_the_picture_or_its_mirror() -> None:
    y, x = np.mgrid[:24, :30]
    picture = np.stack([y, x, 0 * x], -1).astype(np.uint8)
    corners, whole = set(), 0
    for crop in make_sampler([picture]).batch(200).clean.astype(int):
        step = int(crop[0, 1, 1] - crop[0, 0, 1])
        top, left = int(crop[0, 0, 0]), int(crop[0, 0 if step > 0 else -1, 1])
        part = picture[top : top + CROP, left : left + CROP][:, :: step or 1]
        if part.shape == crop.shape and np.array_equal(part, crop):  # else it was reduced
            whole += 1
            corners.add((top, left, step))
    assert 110 < whole < 175  # seven in ten
    tops, lefts, steps = (set(c) for c in zip(*corners, strict=True))
    assert (min(tops), max(tops), min(lefts), max(lefts)) == (0, 8, 0, 14)
    assert steps == {1, -1}


def test_some_pictures_are_reduced_and_none_is_too_small() -> None:
    """A coarse grid of one-pixel dots is averaged away only where the picture is shrunk."""
    picture = np.zeros((64, 90, 3), np.uint8)
    picture[::2, ::2] = 255
    clean = make_sampler([picture]).batch(200).clean
    reduced = np.array([len(np.unique(c)) > 2 for c in clean])
    assert near(float(reduced.mean()), 0.3, 200)
    exact = np.random.default_rng(1).integers(0, 256, (CROP, CROP, 3), np.uint8)
    for crop in make_sampler([exact]).batch(20).clean:
        assert np.array_equal(crop, exact) or np.array_equal(crop, exact[:, ::-1])


def test_zip_and_list_are_entries_like_any_folder(tmp_path: Path) -> None:
    folder = Path(make_folder(tmp_path / "a", range(20)))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for file in folder.iterdir():
            archive.write(file, file.name)
    loose, zipped = (Pictures.load((f"{e}=0.5",), 4, 32) for e in (folder, tmp_path / "a.zip"))
    for a, b in ((loose.train, zipped.train), (loose.held_out, zipped.held_out)):
        assert [p[0, 0, 0] for p in a] == [p[0, 0, 0] for p in b]
    (tmp_path / "l.txt").write_text("\n".join(f"{i:03}.png" for i in range(5, 26)))
    some = Pictures.load((f"{folder}@{tmp_path / 'l.txt'}",), 2, 32)
    assert levels([*some.train, *some.held_out]) == set(range(5, 20))
    assert len(some.skipped) == 1
    assert "6 of 21 names are not in" in some.skipped[0]


def test_what_does_not_fit_is_decoded_when_drawn(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The same pictures, split and batches, in a tenth of the memory, and one line that says so."""
    folder = make_folder(tmp_path / "a", range(30))
    (tmp_path / "a" / "broken.png").write_bytes(b"x")
    pack((folder,), tmp_path / "a.frpack")
    with caplog.at_level(logging.WARNING):
        whole = Pictures.load((folder,), 4, 32)
        assert caplog.messages == []
        for entry in (folder, str(tmp_path / "a.frpack")):
            caplog.clear()
            lazy = Pictures.load((entry,), 4, 32, limit_gib=20 * 6000 / 2**30)
            assert len(caplog.messages) == 1
            assert "decoded when drawn" in caplog.messages[0]
            assert isinstance(lazy.train, Encoded)
            assert len(lazy.train) == len(whole.train)
            assert [p[0, 0, 0] for p in lazy.train] == [p[0, 0, 0] for p in whole.train]
            assert levels(lazy.held_out) == levels(whole.held_out)
            assert len(lazy.skipped) == (entry == folder)
    settings: dict[str, Any] = {"noisy": 0.5, "max_sigma": 9, "max_ratio": 0.6, "bank": 20}
    a, b = (Sampler(p, np.random.default_rng(1), CROP, **settings) for p in (whole, lazy))
    assert all(np.array_equal(x, y) for x, y in zip(a.batch(20), b.batch(20), strict=True))
    assert lazy.train[-1][0, 0, 0] == whole.train[-1][0, 0, 0]
    with pytest.raises(IndexError):
        lazy.train[len(lazy.train)]


def test_sizes_of_a_packed_file_count_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack((make_folder(tmp_path / "a", range(10)),), tmp_path / "a.frpack")
    from fastrestore.train.sources import Source

    def never(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(Source, "decode", never)
    assert len(Pictures.load((str(tmp_path / "a.frpack"),), 2, 32, limit_gib=1e-6).train) == 8


def test_free_memory_is_a_plausible_number() -> None:
    assert 0.01 < free_gib() < 100_000


def test_threads_may_share_a_sampler() -> None:
    rng = np.random.default_rng(5)
    sampler = make_sampler([rng.integers(0, 256, (40, 50, 3), np.uint8) for _ in range(3)])
    state = sampler.rng.bit_generator.state

    def draw(seed: int) -> np.ndarray:
        return sampler.batch(4, np.random.default_rng(seed)).clean

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(draw, range(12)))
    assert all(np.array_equal(draw(i), clean) for i, clean in enumerate(together))
    assert sampler.rng.bit_generator.state == state


def make_sets() -> Pictures:
    """Two portraits of one set (level 200 before 50), two photographs of another (100, 110)."""
    portrait = flat(50, 64, 64)
    portrait[16:, 16:48] = 200
    portrait[44:, 6:58] = 200
    train = [portrait, portrait.copy(), flat(100, 64, 64), flat(110, 64, 64)]
    return Pictures(train, np.full(4, 0.25), [], [], np.array([0, 0, 1, 1]))


def test_backgrounds_are_replaced_by_photographs() -> None:
    pictures = make_sets()
    assert pictures.alphas[0] is not None
    settings: dict[str, Any] = {"noisy": 0.5, "max_sigma": 9, "max_ratio": 0.6, "bank": 20}
    for share in (0.0, 0.5, 1.0):
        sampler = Sampler(
            pictures, np.random.default_rng(2), 48, **settings, replace_background=share
        )
        clean = sampler.batch(300).clean[..., 0].astype(int)
        persons = clean[(np.abs(clean - 200) <= 3).any((1, 2))]
        assert near(len(persons) / 300, 0.5, 300)
        walls = (np.abs(persons - 50) <= 3).any((1, 2))
        photos = (np.abs(persons - 105) <= 8).mean((1, 2)) > 0.05
        assert photos.mean() == pytest.approx(share, abs=0.15)  # four deviations
        assert (walls != photos).all()


def test_portraits_alone_stay_as_they_are() -> None:
    pictures = make_sets()
    alone = Pictures(pictures.train[:2], np.full(2, 0.5), [], [])
    settings: dict[str, Any] = {"noisy": 0.5, "max_sigma": 9, "max_ratio": 0.6, "bank": 20}
    sampler = Sampler(alone, np.random.default_rng(2), 48, **settings, replace_background=1.0)
    drawn = sampler.batch(20).clean.astype(int)
    assert ((np.abs(drawn - 50) <= 3) | (np.abs(drawn - 200) <= 3)).mean((1, 2, 3)).min() > 0.9


def test_nothing_is_keyed_where_nothing_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("keyed")

    monkeypatch.setattr(portraits, "background", never)
    settings: dict[str, Any] = {"noisy": 0.5, "max_sigma": 9, "max_ratio": 0.6, "bank": 20}
    Sampler(make_sets(), np.random.default_rng(2), 48, **settings).batch(20)
