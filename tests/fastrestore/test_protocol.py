from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastrestore.arrays import U8
from fastrestore.errors import InputError
from fastrestore.evaluate import Damage
from fastrestore.protocol import (
    FAMILIES,
    RATIOS,
    SIGMAS,
    Case,
    MaskFile,
    digest,
    digest_all,
    file_cases,
    paper_cases,
    read_masks,
)

H, W = 64, 80


def picture(seed: int = 0) -> U8:
    return np.random.default_rng(seed).integers(20, 230, (H, W, 3), np.uint8)


def mask_file(name: str, rows: int, height: int = H) -> MaskFile:
    mask = np.zeros((height, W), np.uint8)
    mask[:rows] = 1
    return MaskFile(name, digest(mask), mask)


# Cases.


@pytest.mark.parametrize(
    ("case", "label", "slug"),
    [
        (Case("freeform", (("freeform", 0.2),)), "freeform 20 %", "freeform-20"),
        (Case("noise", sigma=25), "sigma 25", "sigma-25"),
        (Case("noise", sigma=25, noise="float"), "sigma 25 unclipped", "sigma-25-unclipped"),
        (
            Case("all", (("freeform", 0.2), ("grid", 0.1)), 25),
            "freeform 20 % + grid 10 % + sigma 25",
            "freeform-20_grid-10_sigma-25",
        ),
        (
            Case("files", files=(mask_file("a", 8),), percent=(10, 20)),
            "files 10-20 %",
            "files-10-20",
        ),
    ],
)
def test_names_of_cases(case: Case, label: str, slug: str) -> None:
    assert (case.label, case.slug) == (label, slug)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"family": "noise"}, "no damage"),
        ({"family": "noise", "sigma": 5.0, "noise": "int"}, "noise int: not known"),
        ({"family": "all", "holes": (("rects", 0.1),), "noise": "float"}, "only without holes"),
    ],
)
def test_bad_cases(fields: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Case(**fields)


def test_the_whole_protocol() -> None:
    cases = paper_cases()
    for family in FAMILIES:
        ratios = [c.ratio for c in cases if c.family == family]
        assert ratios == [r for r in RATIOS if family != "thin" or r <= 0.2]
    assert [c.sigma for c in cases if c.family == "noise"] == list(SIGMAS) == [15, 25, 50]
    (together,) = (c for c in cases if c.family == "all")
    assert (together.holes, together.sigma) == ((("freeform", 0.2), ("grid", 0.1)), 25)
    assert len({c.slug for c in cases}) == len(cases) == 3 * 7 + 3 + 3 + 1


def test_quick_is_a_part_of_it() -> None:
    quick, whole = paper_cases(quick=True), {c.slug for c in paper_cases()}
    assert {c.slug for c in quick} < whole
    assert {c.family for c in quick} == {"freeform", "grid", "noise", "all"}
    assert {c.ratio for c in quick if c.family == "grid"} == {0.1, 0.2, 0.4}


@pytest.mark.parametrize(
    ("named", "slugs"),
    [
        ({"holes": "rects", "ratios": (0.2,)}, ["rects-20"]),
        ({"ratios": (0.3,), "sigmas": (10,)}, [f"{f}-30" for f in FAMILIES] + ["sigma-10"]),
        ({"sigmas": (15, 50), "noise": "float"}, ["sigma-15-unclipped", "sigma-50-unclipped"]),
        ({"holes": "thin"}, ["thin-5", "thin-10", "thin-20"]),
        ({"quick": True, "holes": "rects"}, ["rects-10", "rects-20", "rects-40"]),
    ],
)
def test_only_what_is_named(named: dict, slugs: list[str]) -> None:
    assert [c.slug for c in paper_cases(**named)] == slugs


def test_families_outside_the_protocol_are_refused() -> None:
    with pytest.raises(InputError, match="center: not in the protocol; choose from freeform"):
        paper_cases(holes="center")


# Bytes.


@pytest.mark.parametrize("kind", FAMILIES)
def test_holes_are_the_bytes_of_the_other_tables(kind: str) -> None:
    """The same name and ratio give the same damage wherever it is measured."""
    d = Case(kind, ((kind, 0.2),)).damage("a", picture())
    image, mask = Damage(kind, 0.2).apply("a", picture())
    assert np.array_equal(d.image, image)
    assert mask is not None
    assert np.array_equal(d.mask, mask)
    assert d.unclipped is None


def test_noise_is_the_bytes_of_the_other_tables() -> None:
    d = Case("noise", sigma=25).damage("a", picture())
    assert np.array_equal(d.image, Damage(sigma=25).apply("a", picture())[0])
    assert (d.mask, d.unclipped, d.sigma) == (None, None, 25)


def test_float_noise_is_the_same_noise_before_rounding_and_clipping() -> None:
    clean = np.full((H, W, 3), 250, np.uint8)
    d = Case("noise", sigma=25, noise="float").damage("a", clean)
    assert d.unclipped is not None
    assert d.unclipped.dtype == np.float32
    assert d.unclipped.max() > 300
    assert (d.unclipped - clean).std() == pytest.approx(25, rel=0.02)
    assert np.array_equal(d.image, np.clip(np.rint(d.unclipped), 0, 255).astype(np.uint8))
    assert np.array_equal(d.image, Case("noise", sigma=25).damage("a", clean).image)


def test_all_three_at_once() -> None:
    case = Case("all", (("freeform", 0.2), ("grid", 0.1)), 25)
    clean = picture()
    d = case.damage("a", clean)
    assert d.mask is not None
    assert 0.2 < d.mask.mean() < 0.31  # a union: cells may lie under strokes
    assert not d.image[d.mask > 0].any()
    rest = d.image[d.mask == 0].astype(float) - clean[d.mask == 0]
    assert 20 < rest.std() < 27
    assert np.array_equal(d.image, case.damage("a", clean).image)
    assert not np.array_equal(d.image, case.damage("b", clean).image)


# Given masks.


def test_bins_of_given_masks() -> None:
    rows = {"a": 3, "b": 16, "c": 32, "d": 33, "e": 64 * 4 // 10}
    cases = file_cases([mask_file(n, r) for n, r in rows.items()])
    found = {c.slug: [f.name for f in c.files] for c in cases}
    assert found == {
        "files-0-10": ["a"],
        "files-20-30": ["b"],
        "files-30-40": ["e"],
        "files-40-50": ["c"],  # 50 % exactly
        "files-50-60": ["d"],
    }


def test_each_picture_has_its_mask() -> None:
    masks = [mask_file(f"{i}.png", 16 + i % 2) for i in range(6)]
    (case,) = file_cases(masks)
    assert case.files == file_cases(masks[::-1])[0].files  # the order of reading does not matter
    names = [f"p{i}" for i in range(40)]
    taken = [case.mask_file(n).name for n in names]
    assert taken == [case.mask_file(n).name for n in names]
    assert set(taken) == {m.name for m in masks}
    d = case.damage("p0", picture())
    assert np.array_equal(d.mask, case.mask_file("p0").mask)
    assert not d.image[d.mask > 0].any()


def test_a_mask_of_another_size_is_named() -> None:
    (case,) = file_cases([mask_file("m.png", 10, height=50)])
    with pytest.raises(InputError, match=r"m\.png: the mask is 80x50, p is 80x64"):
        case.damage("p", picture())


def test_masks_are_read_white_as_hole(tmp_path: Path) -> None:
    white = np.zeros((H, W), np.uint8)
    white[:16] = 255
    for name in ("b.png", "a.png"):
        Image.fromarray(white).save(tmp_path / name)
    (tmp_path / "note.txt").write_text("no picture")
    found = read_masks(tmp_path)
    assert [m.name for m in found] == ["a.png", "b.png"]
    assert found[0].mask.mean() == 0.25
    assert found[0].sha256 == digest(found[0].mask)
    Image.fromarray(white * 0).save(tmp_path / "c.png")
    with pytest.raises(InputError, match=r"c\.png: needs both"):
        read_masks(tmp_path)


def test_folders_without_masks(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nope: no such folder of masks"):
        read_masks(tmp_path / "nope")
    with pytest.raises(InputError, match="no masks in this folder"):
        read_masks(tmp_path)


def test_digests() -> None:
    a = picture()
    assert digest(a) == digest(a.copy())
    assert digest(a) != digest(a.reshape(W, H, 3))
    assert digest_all({"a": "1", "b": "2"}) == digest_all({"b": "2", "a": "1"})
    assert digest_all({"a": "1", "b": "2"}) != digest_all({"a": "2", "b": "1"})
