from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fastrestore.errors import InputError, OutputError
from fastrestore.ledger import SCORES, SETTINGS, Ledger
from fastrestore.measure import Line


def settings(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "pictures": {"a": "1", "b": "2"},
        "lpips": None,
        "cases": {"rects-20": {"ratio": 0.2}},
        "methods": {"telea": "opencv 5"},
    }
    return {**found, **changes}


def line(picture: str = "a", **changes: Any) -> Line:
    fields: dict[str, Any] = {
        "picture": picture,
        "case": "rects-20",
        "method": "telea",
        "variant": "",
        "share": 0.2,
        "psnr": 30.5,
        "hole_psnr": 23.5,
        "ssim": 0.95,
        "lpips": None,
        "edge_f1": 0.5,
        "seconds": 0.01,
    }
    return Line(**{**fields, **changes})


def test_scores_are_kept_and_gone_on_with(tmp_path: Path) -> None:
    first, second = line(), line("b", hole_psnr=None, lpips=0.125, seconds=None)
    with Ledger(tmp_path / "new", settings()) as ledger:
        assert not ledger.has(first.key)
        ledger.add(first)
        assert ledger.has(first.key)
        on_disk = (tmp_path / "new" / SCORES).read_text().splitlines()
        assert on_disk[0].startswith("picture,case,method,variant,share,psnr")
        assert on_disk[1] == "a,rects-20,telea,,0.2,30.5,23.5,0.95,,0.5,0.01"  # before it closes
    with Ledger(tmp_path / "new", settings()) as ledger:
        assert ledger.lines == [first]
        assert ledger.has(first.key)
        ledger.add(second)
    with Ledger(tmp_path / "new", settings()) as ledger:
        assert ledger.lines == [first, second]


def test_names_with_commas_survive(tmp_path: Path) -> None:
    odd = line('a, "b"\n', method="x,y")
    with Ledger(tmp_path, settings()) as ledger:
        ledger.add(odd)
    with Ledger(tmp_path, settings()) as ledger:
        assert ledger.lines == [odd]


def test_a_line_that_was_cut_short_is_measured_again(tmp_path: Path) -> None:
    with Ledger(tmp_path, settings()) as ledger:
        ledger.add(line("a"))
        ledger.add(line("b"))
    path = tmp_path / SCORES
    path.write_bytes(path.read_bytes()[:-9])
    with Ledger(tmp_path, settings()) as ledger:
        assert ledger.lines == [line("a")]
        ledger.add(line("b"))
    with Ledger(tmp_path, settings()) as ledger:
        assert ledger.lines == [line("a"), line("b")]


def test_a_folder_grows_by_cases_and_methods(tmp_path: Path) -> None:
    Ledger(tmp_path, settings()).__exit__(None, None, None)
    more = settings(cases={"grid-10": {}}, methods={"biharmonic": "scikit-image 1"})
    with Ledger(tmp_path, more) as ledger:
        assert list(ledger.settings["cases"]) == ["rects-20", "grid-10"]
        assert set(ledger.settings["methods"]) == {"telea", "biharmonic"}
    assert json.loads((tmp_path / SETTINGS).read_text()) == ledger.settings


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pictures": {"a": "1"}}, "begun with other pictures"),
        ({"pictures": {"a": "1", "b": "3"}}, "begun with other pictures"),
        ({"lpips": "ab"}, "other weights of LPIPS"),
        ({"cases": {"rects-20": {"ratio": 0.3}}}, "begun with another 'rects-20'"),
        ({"methods": {"telea": "opencv 6"}}, "begun with another 'telea'"),
    ],
)
def test_other_settings_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with Ledger(tmp_path, settings()) as ledger:
        ledger.add(line())
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(InputError, match=words):
        Ledger(tmp_path, settings(**changes))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (SETTINGS, "{", "cannot be read"),
        (SETTINGS, "[1]", "cannot be read"),
        (SCORES, "a,b\n1,2\n", "other columns"),
        (SCORES, "+a,b,c\n", "is damaged"),
        (SCORES, "+" + ",".join("abcdefghijk") + "\n", "is damaged"),
    ],
)
def test_damaged_folders(tmp_path: Path, name: str, text: str, words: str) -> None:
    Ledger(tmp_path, settings()).__exit__(None, None, None)
    path = tmp_path / name
    path.write_text(path.read_text() + text[1:] if text.startswith("+") else text)
    with pytest.raises(InputError, match=words):
        Ledger(tmp_path, settings())


def test_scores_without_settings_are_not_trusted(tmp_path: Path) -> None:
    (tmp_path / SCORES).write_text("x")
    with pytest.raises(InputError, match="has scores but no settings"):
        Ledger(tmp_path, settings())


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file: cannot be made"):
        Ledger(tmp_path / "file", settings())
