from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from fastrestore.arrays import U8
from fastrestore.contenders import RAW, Contender
from fastrestore.errors import InputError
from fastrestore.exchange import outputs_contenders, write_inputs
from fastrestore.images import Picture, read_picture, write_picture
from fastrestore.masks import read_mask
from fastrestore.protocol import Case

HOLES = Case("rects", (("rects", 0.2),))
FLOAT = Case("noise", sigma=25, noise="float")
ALL = Case("all", (("freeform", 0.2), ("grid", 0.1)), 25)
NAMES = ["a", "b"]


def picture(seed: int) -> U8:
    return np.random.default_rng(seed).integers(20, 230, (40, 48, 3), np.uint8)


def pictures() -> list[tuple[str, U8]]:
    return [(name, picture(i)) for i, name in enumerate(NAMES)]


def save(path: Path, rgb: U8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_picture(path, Picture(rgb=rgb), rgb)


def test_inputs_are_the_bytes_that_are_measured(tmp_path: Path) -> None:
    told: list[str] = []
    write_inputs(tmp_path / "in", pictures, [HOLES, FLOAT], told.append)
    assert told == [HOLES.slug, FLOAT.slug]
    for name, clean in pictures():
        d = HOLES.damage(name, clean)
        assert d.mask is not None
        assert np.array_equal(read_picture(tmp_path / f"in/clean/{name}.png").rgb, clean)
        damaged = tmp_path / f"in/damaged/rects-20/{name}.png"
        assert np.array_equal(read_picture(damaged).rgb, d.image)
        mask = tmp_path / f"in/masks/rects-20/{name}.png"
        assert np.array_equal(read_mask(mask, (40, 48)), d.mask)
        assert set(np.unique(read_picture(mask).rgb)) == {0, 255}
        noisy = FLOAT.damage(name, clean)
        file = tmp_path / f"in/unclipped/sigma-25-unclipped/{name}.npy"
        assert np.array_equal(np.load(file), noisy.unclipped)
    assert not (tmp_path / "in/masks/sigma-25-unclipped").exists()


def test_the_manifest_lists_every_file(tmp_path: Path) -> None:
    write_inputs(tmp_path, pictures, [HOLES, FLOAT])
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    files = {
        p.relative_to(tmp_path).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in tmp_path.rglob("*.*")
        if p.name != "manifest.json"
    }
    assert manifest["sha256"] == files
    assert manifest["cases"]["rects-20"] == HOLES.to_json()
    assert manifest["mask"] == "white (255) = hole"


def test_inputs_do_not_mix_with_old_ones(tmp_path: Path) -> None:
    (tmp_path / "old").touch()
    with pytest.raises(InputError, match="not an empty folder"):
        write_inputs(tmp_path, pictures, [HOLES])
    with pytest.raises(InputError, match="not an empty folder"):
        write_inputs(tmp_path / "old", pictures, [HOLES])


def outputs(folder: Path, *cases: Case) -> tuple[list[Contender], list[str]]:
    return outputs_contenders("them", folder, cases, NAMES)


def test_pictures_of_another_program(tmp_path: Path) -> None:
    for i, name in enumerate(NAMES):
        save(tmp_path / f"rects-20/{name}.webp", picture(10 + i))
    contenders, notes = outputs(tmp_path, HOLES, ALL)
    assert notes == [f"them: not measured on {ALL.slug} (no such folders)"]
    composite, raw = contenders
    assert (composite.title, raw.title) == ("them", "them, raw")
    assert not composite.timed
    assert composite.fits(HOLES)
    assert not composite.fits(ALL)
    d = HOLES.damage("b", picture(1))
    assert d.mask is not None
    assert np.array_equal(raw.run("b", HOLES, d), picture(11))
    out = composite.run("b", HOLES, d)
    assert np.array_equal(out[d.mask > 0], picture(11)[d.mask > 0])
    assert np.array_equal(out[d.mask == 0], d.clean[d.mask == 0])


def test_under_noise_the_picture_counts_as_it_is(tmp_path: Path) -> None:
    for i, name in enumerate(NAMES):
        save(tmp_path / f"{ALL.slug}/{name}.png", picture(10 + i))
    contenders, _ = outputs(tmp_path, ALL)
    (only,) = (c for c in contenders if c.fits(ALL))
    assert only.variant != RAW
    assert np.array_equal(only.run("a", ALL, ALL.damage("a", picture(0))), picture(10))


def test_what_is_in_the_files_is_their_identity(tmp_path: Path) -> None:
    for name in NAMES:
        save(tmp_path / f"rects-20/{name}.png", picture(5))
    before = outputs(tmp_path, HOLES)[0][0].identity
    assert outputs(tmp_path, HOLES)[0][0].identity == before
    save(tmp_path / "rects-20/a.png", picture(6))
    assert outputs(tmp_path, HOLES)[0][0].identity != before


def test_missing_pictures_are_named(tmp_path: Path) -> None:
    save(tmp_path / "rects-20/a.png", picture(0))
    with pytest.raises(InputError, match=r"rects-20: them lacks b\.png; make them"):
        outputs(tmp_path, HOLES)
    names = [f"p{i}" for i in range(9)]
    with pytest.raises(InputError, match=r"p0\.png, .*p4\.png and 4 more"):
        outputs_contenders("them", tmp_path, [HOLES], names)


def test_bad_folders_of_outputs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nope: no such folder of pictures that them made"):
        outputs(tmp_path / "nope", HOLES)
    with pytest.raises(InputError, match="has none of the folders rects-20"):
        outputs(tmp_path, HOLES)
    for name in ("a.png", "a.webp", "b.png"):
        save(tmp_path / "rects-20" / name, picture(0))
    with pytest.raises(InputError, match="another file has this name"):
        outputs(tmp_path, HOLES)


def test_pictures_of_another_size_are_refused(tmp_path: Path) -> None:
    for name in NAMES:
        save(tmp_path / f"rects-20/{name}.png", np.zeros((80, 96, 3), np.uint8))
    contenders, _ = outputs(tmp_path, HOLES)
    with pytest.raises(InputError, match=r"a\.png: is 96x80, the input 48x40"):
        contenders[0].run("a", HOLES, HOLES.damage("a", picture(0)))
