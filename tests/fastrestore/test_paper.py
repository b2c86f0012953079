from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastrestore import paper
from fastrestore.arrays import U8
from fastrestore.contenders import Contender
from fastrestore.demo import sample_folder
from fastrestore.errors import InputError, ModelError
from fastrestore.exchange import write_inputs
from fastrestore.images import Picture, read_picture, write_picture
from fastrestore.paper import Entries, Outcome, Pictures, run_protocol
from fastrestore.protocol import Case

HOLES, NOISE = Case("freeform", (("freeform", 0.2),)), Case("noise", sigma=25)
ENTRIES = Entries(models=("nano",), backend="ort", threads=1, classical=("telea", "bilateral"))
SIDE = 48


def photo(seed: int) -> U8:
    cat = read_picture(sample_folder() / "cat.webp").rgb
    y, x = np.random.default_rng(seed).integers(0, 200, 2)
    return np.ascontiguousarray(cat[y : y + SIDE, x : x + SIDE])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(3):
        write_picture(photos / f"{i}.png", Picture(rgb=photo(i)), photo(i))
    return photos


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing torch and drawing take seconds; both have their own tests."""
    monkeypatch.setattr(paper, "_draw_curve", lambda *_: ["curve.png: left out (not here)"])
    monkeypatch.setattr(paper, "open_lpips", lambda _: (None, "LPIPS: left out (not here)"))


def run(folder: Path, *cases: Case, limit: int | None = None, **changes: Any) -> Outcome:
    fields = {n: getattr(ENTRIES, n) for n in Entries.__slots__}
    entries = Entries(**{**fields, **changes})
    report = folder.parent / "report"
    return run_protocol(report, Pictures(folder, limit), cases or (HOLES, NOISE), entries)


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder.parent / "report" / "scores.csv", newline="") as file:
        return list(csv.DictReader(file))


# Pictures.


def test_pictures(folder: Path) -> None:
    found = Pictures(folder, 2)
    assert len(found) == 2
    assert [name for name, _ in found] == ["0", "1"]
    assert np.array_equal(found.read("1"), photo(1))
    assert found.largest == SIDE**2
    assert len(set(found.hashes.values())) == 2


def test_pictures_beyond_the_memory_are_read_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paper, "KEEP_BYTES", SIDE * SIDE * 3)
    found = Pictures(folder)
    assert [np.array_equal(p, photo(i)) for i, (_, p) in enumerate(found)] == [True] * 3


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("gone", "gone: no such folder"),
        ("empty", "empty: no pictures in this folder"),
        ("twice", r"1\.webp: two pictures have this name"),
        ("small", r"s\.png: the metrics need at least 31 px"),
        ("bad", r"b\.png: is not a picture"),
    ],
)
def test_bad_pictures(folder: Path, what: str, words: str) -> None:
    other = folder.parent / what
    if what == "twice":
        write_picture(folder / "1.webp", Picture(rgb=photo(5)), photo(5))
        other = folder
    elif what != "gone":
        other.mkdir()
    if what == "small":
        Image.fromarray(photo(0)[:30]).save(other / "s.png")
    if what == "bad":
        (other / "b.png").write_text("hello")
    with pytest.raises(InputError, match=words):
        Pictures(other)


# The whole run.


def test_everything_is_measured_and_written(folder: Path) -> None:
    outcome = run(folder)
    # The detector may be installed or not; it has its own tests.
    found = [r for r in rows(folder) if r["variant"] != "mask withheld"]
    methods = {(r["case"], r["method"], r["variant"]) for r in found}
    ours = "fastrestore nano"
    assert methods == {
        ("freeform-20", "input", ""),
        ("freeform-20", ours, ""),
        ("freeform-20", ours, "raw"),
        ("freeform-20", "telea", ""),
        ("sigma-25", "input", ""),
        ("sigma-25", ours, ""),
        ("sigma-25", ours, "sigma told"),
        ("sigma-25", "bilateral", ""),
    }
    assert len(found) == 3 * len(methods)
    report = folder.parent / "report"
    written = {p.name for p in report.iterdir()}
    assert written == {
        "scores.csv",
        "settings.json",
        "report.md",
        "report.json",
        "sheet-best.png",
        "sheet-median.png",
        "sheet-worst.png",
    }
    assert "freeform 20 %" in (report / "report.md").read_text()
    assert json.loads((report / "report.json").read_text()) == json.loads(
        json.dumps(outcome.report)
    )
    assert outcome.report["ours"] == ours
    assert {"LPIPS: left out (not here)", "curve.png: left out (not here)"} <= set(outcome.notes)
    assert any(n.startswith("mask withheld: left out (no damage") for n in outcome.notes) != any(
        r["variant"] == "mask withheld" for r in rows(folder)
    )
    with Image.open(report / "sheet-best.png") as sheet:
        assert sheet.size[0] >= 4 * SIDE


def test_a_second_run_measures_nothing_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(folder, HOLES, classical=())
    before = rows(folder)

    def never(*_: Any) -> Any:
        raise AssertionError("it measured")

    monkeypatch.setattr(paper, "measure", never)
    second = run(folder, HOLES, classical=())
    assert rows(folder) == before
    assert second.report["results"] == first.report["results"]


def test_a_run_that_broke_off_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(folder, HOLES).report["results"]
    report = folder.parent / "report"
    text = (report / "scores.csv").read_text()
    (report / "scores.csv").write_text(text[: len(text) // 2])
    ran: list[str] = []
    again = paper.measure

    def counted(name: str, *rest: Any) -> Any:
        ran.append(name)
        return again(name, *rest)

    monkeypatch.setattr(paper, "measure", counted)
    results = run(folder, HOLES).report["results"]
    assert ran == ["1", "2"]
    for a, b in zip(whole, results, strict=True):
        assert (a["mean"], a["gain"]) == (b["mean"], b["gain"])


def test_a_folder_may_grow_but_not_change(folder: Path) -> None:
    run(folder, HOLES, classical=())
    grown = run(folder, NOISE, classical=("bilateral",))
    assert {r["case"] for r in grown.report["results"]} == {"freeform-20", "sigma-25"}
    with pytest.raises(InputError, match="begun with other pictures"):
        run(folder, HOLES, limit=2)


def test_other_programs_stand_beside_ours(folder: Path) -> None:
    """A perfect one, made from the inputs written, beats ours; a blank one does not."""
    pictures = Pictures(folder)
    write_inputs(folder.parent / "in", lambda: pictures, [HOLES])
    for name, out in (("perfect", "clean"), ("blank", "damaged/freeform-20")):
        target = folder.parent / name / "freeform-20"
        target.mkdir(parents=True)
        for p in (folder.parent / "in" / out).iterdir():
            (target / p.name).write_bytes(p.read_bytes())
    named = [(n, folder.parent / n) for n in ("perfect", "blank")]
    outcome = run(folder, HOLES, NOISE, outputs=named)
    gains = {
        r["method"]: r["gain"]["psnr"][0]
        for r in outcome.report["results"]
        if r["case"] == "freeform-20" and r["method"] in ("perfect", "blank") and not r["variant"]
    }
    assert gains["perfect"] < -20 < 5 < gains["blank"]
    assert "perfect: not measured on sigma-25 (no such folders)" in outcome.notes
    assert "behind in 1, " in outcome.headline[0]


def test_a_detector_that_was_named_must_be_there(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"nope\.onnx"):
        run(folder, HOLES, detector="nope.onnx")


def test_a_model_twice_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="fastrestore nano: two methods have this name"):
        run(folder, HOLES, models=("nano", "nano"))


def test_large_pictures_have_no_raw_output(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper, "LIMIT_PX", 100)
    outcome = run(folder, HOLES, classical=())
    assert "raw" not in {r["variant"] for r in outcome.report["results"]}
    assert any(n.startswith("raw output: left out") for n in outcome.notes)


def test_progress_is_told(folder: Path) -> None:
    told: list[tuple[str, int, int]] = []
    report = folder.parent / "report"
    entries = Entries(models=("nano",), backend="ort", threads=1, classical=())
    run_protocol(report, Pictures(folder, 2), [NOISE], entries, lambda *a: told.append(a))
    assert told == [("sigma 25", 1, 2), ("sigma 25", 2, 2)]
    assert not list(report.glob("sheet-*"))  # no holes: nothing to choose by


def test_no_contender_sees_the_truth(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With another truth under the same damage every method gives the same picture."""
    seen: dict[str, set[bytes]] = {}
    truth = [0]
    plain = Case.damage

    def damaged(case: Case, name: str, clean: U8) -> Any:
        d = plain(case, name, clean)
        return type(d)(np.full_like(clean, truth[0]), d.image, d.mask, d.sigma, d.unclipped)

    def spy(c: Contender) -> Contender:
        def run_it(name: str, case: Case, d: Any) -> U8:
            out = c.run(name, case, d)
            seen.setdefault(f"{c.title} {case.slug} {name}", set()).add(out.tobytes())
            return out

        return Contender(c.method, c.variant, c.identity, c.fits, run_it)

    inside = paper._open

    def opened(*a: Any) -> Any:
        contenders, notes = inside(*a)
        return [spy(c) for c in contenders], notes

    monkeypatch.setattr(Case, "damage", damaged)
    monkeypatch.setattr(paper, "_open", opened)
    for value in (0, 200):
        truth[0] = value
        run(folder, limit=1)
        (folder.parent / "report").rename(folder.parent / f"report-{value}")
    assert len(seen) >= 8
    assert {len(outs) for outs in seen.values()} == {1}
