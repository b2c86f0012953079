"""Which tile a card gets, and how the tuner chooses one: no GPU needed."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fastrestore.errors import InputError
from fastrestore.kernels import launch, residual_block, tiles, tune
from fastrestore.kernels.assemble import KernelError
from fastrestore.kernels.tiles import Tile

# Without a CUDA device the interpreter runs, on the CPU; with one, the compiled kernels.
DEVICE = torch.device("cpu" if launch.INTERPRETED else "cuda")


@pytest.fixture
def tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of tables with the shipped default alone."""
    (tmp_path / "default.json").write_bytes((tiles.TUNED / "default.json").read_bytes())
    monkeypatch.setattr(tiles, "TUNED", tmp_path)
    tiles.for_card.cache_clear()
    yield tmp_path
    tiles.for_card.cache_clear()


def table(**changes: Any) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((tiles.TUNED / "default.json").read_text())
    return {**data, **changes}


def test_the_default_says_that_it_was_not_measured_and_no_other_table_ships() -> None:
    shipped = {path.name: tiles.read(path) for path in tiles.TUNED.glob("*.json")}
    assert shipped["default.json"].source == "predicted from ptxas resources; not measured"
    for name, found in shipped.items():
        assert name == "default.json" or found.source.startswith("measured by ")


@pytest.mark.parametrize("channels", tiles.WIDTHS)
def test_few_pixels_take_smaller_programs(channels: int) -> None:
    few = tiles.choose(channels, tiles.MANY_PIXELS - 1)
    many = tiles.choose(channels, tiles.MANY_PIXELS)
    assert few.block_m < many.block_m
    assert few == tiles.choose(channels, 1)


def test_an_unknown_width_is_refused() -> None:
    with pytest.raises(InputError, match="48 channels"):
        tiles.choose(48, 10)


def test_an_unknown_card_takes_the_default_and_says_so_once(
    tuned: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "fastrestore"):
        for _ in range(3):
            assert tiles.choose(32, 10, (9, 9)) == tiles.choose(32, 10)
    (record,) = caplog.records
    assert "sm_99" in record.getMessage()
    assert "python -m fastrestore.kernels.tune" in record.getMessage()


def test_a_measured_card_takes_its_own_table_and_says_nothing(
    tuned: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = table(many_pixels=50)
    own["tiles"]["32"]["large"] = Tile(256, 32, 32, 8, 2).to_json()
    (tuned / "sm_87.json").write_text(json.dumps(own))
    assert tiles.choose(32, 50, (8, 7)) == Tile(256, 32, 32, 8, 2)
    assert tiles.choose(32, 49, (8, 7)) == tiles.choose(32, 1)
    assert not caplog.records


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "damaged"),
        ("[]", "damaged"),
        (json.dumps({"source": "x"}), "lacks 'many_pixels'"),
        (json.dumps(table(tiles={})), "lacks '16'"),
        (json.dumps(table(many_pixels="many")), "many_pixels"),
        (json.dumps(table(speed=1)), "unknown key speed"),
        (json.dumps(table()).replace('"block_m": 64', '"block_m": 65', 1), "block_m is 65"),
        (json.dumps(table()).replace('"block_k": 16', '"block_k": 32', 1), "divide the width"),
        (json.dumps(table()).replace('"stages": 3', '"stages": 0', 1), "stages is 0"),
        (json.dumps(table()).replace('"warps": 4', '"threads": 4', 1), "other fields"),
    ],
)
def test_a_damaged_table_is_one_line(tuned: Path, text: str, says: str) -> None:
    (tuned / "sm_80.json").write_text(text)
    with pytest.raises(InputError, match=says) as caught:
        tiles.choose(16, 10, (8, 0))
    assert "sm_80.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("channels", tiles.WIDTHS)
def test_candidates_hold_the_defaults_and_nothing_twice(channels: int) -> None:
    found = list(tune.candidates(channels))
    assert len(found) == len(set(found)) <= 30
    for pixels in (1, tiles.MANY_PIXELS):
        assert tiles.choose(channels, pixels) in found


def row(tile: Tile, us: float | None, dilation: int = 1) -> tune.Measured:
    fault = "" if us else "wrong: error 1"
    return tune.Measured(tune.Place(16, "small", dilation), tile, us, fault)


FAST, SLOW = Tile(64, 16, 16, 4, 2), Tile(128, 16, 16, 4, 2)


def test_best_is_the_least_sum_over_dilations() -> None:
    rows = [row(FAST, 1.0), row(SLOW, 3.0), row(FAST, 9.0, 8), row(SLOW, 4.0, 8)]
    assert tune.best(rows) == SLOW


def test_a_tile_that_is_wrong_once_cannot_win() -> None:
    rows = [row(FAST, 1.0), row(SLOW, 5.0), row(FAST, None, 8), row(SLOW, 5.0, 8)]
    assert tune.best(rows) == SLOW


def test_no_right_tile_is_one_line() -> None:
    with pytest.raises(KernelError, match=r"16 channels, small \(wrong: error 1\)"):
        tune.best([row(FAST, None), row(SLOW, None)])


def test_both_sides_of_the_breakpoint_are_timed() -> None:
    for channels in tiles.WIDTHS:
        x = {}
        for size in tiles.SIZES:
            case = tune.Place(channels, size, 1).case
            step = residual_block.REDUCTION[channels]
            x[size] = case.height // step * (case.width // step)
        assert x["small"] < tiles.MANY_PIXELS <= x["large"]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """One width, three candidates, pictures of 3 x 5: the whole run in the interpreter."""
    monkeypatch.setattr(tiles, "WIDTHS", (16,))
    monkeypatch.setattr(tune, "SMALL", (3, 5))
    monkeypatch.setattr(tune, "LARGE", {16: (3, 7)})
    monkeypatch.setattr(
        tune, "candidates", lambda c: iter([Tile(m, 16, 16, 4, 2) for m in (16, 32, 64)])
    )


class Clock:
    """Launches once; the time is 10 us less a tenth for every pixel of the tile."""

    def __init__(self) -> None:
        self.records: list[Any] = []

    def __call__(self, run: tune.Run) -> float:
        run()
        return 10 - self.records[-1].constants["block_m"] / 10


@pytest.mark.usefixtures("tiny")
def test_the_table_holds_the_fastest_right_tile_and_every_median(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, compute = Clock(), residual_block.compute

    def spy(record: Any, x: Any, *rest: Any) -> None:
        clock.records.append(record)
        if record.constants["block_m"] == 64 and x.shape[2] == 7:
            return  # the fastest is wrong in the large picture: it writes nothing
        if record.constants["block_m"] == 32 and x.shape[2] == 5:
            raise RuntimeError("out of resources:\nshared memory")
        compute(record, x, *rest)

    monkeypatch.setattr(residual_block, "compute", spy)
    said: list[str] = []
    found = tune.tune(DEVICE, clock, said.append)
    assert found["tiles"]["16"]["small"]["block_m"] == 64
    assert found["tiles"]["16"]["large"]["block_m"] == 32
    assert len(found["measured"]) == 2 * 2 * 3
    faults = [r["fault"] for r in found["measured"] if "fault" in r]
    assert set(faults) == {"wrong: error nan", "RuntimeError: out of resources: shared memory"}
    assert {r["median_us"] for r in found["measured"] if "fault" not in r} == {3.6, 6.8, 8.4}
    assert len(said) == 2
    path = tmp_path / "sm_87.json"
    monkeypatch.undo()
    path.write_text(tune.to_text({**found, "tiles": {**table()["tiles"], **found["tiles"]}}))
    read = tiles.read(path)
    assert read.source == "measured by python -m fastrestore.kernels.tune"
    assert read.tiles[16]["large"] == Tile(32, 16, 16, 4, 2)
    assert json.loads(path.read_text())["measured"] == found["measured"]


def fake_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(launch, "INTERPRETED", False)
    monkeypatch.setattr(tune, "describe", lambda device: {"name": "x", "capability": [8, 7]})
    measured = [row(FAST, 1.0).to_json()]
    monkeypatch.setattr(tune, "tune", lambda *_: {**table(), "measured": measured})


def test_the_command_writes_the_table_of_this_card(
    tuned: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_card(monkeypatch)
    assert tune.main([]) == 0
    assert capsys.readouterr().out == f"{tuned / 'sm_87.json'}\n"
    assert tiles.choose(32, 1, (8, 7)) == tiles.choose(32, 1)
    assert json.loads((tuned / "sm_87.json").read_text())["device"]["name"] == "x"
    assert tune.main(["--output", str(tuned / "mine.json")]) == 0
    assert tiles.read(tuned / "mine.json").tiles == tiles.for_card().tiles


def test_a_folder_that_is_not_there_is_said_before_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_card(monkeypatch)
    monkeypatch.setattr(tune, "tune", lambda *_: pytest.fail("measured"))
    assert tune.main(["--output", str(tmp_path / "no" / "x.json")]) == 5
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("absent", ["torch", "triton"])
@pytest.mark.parametrize(
    "command", [["-m", "fastrestore.kernels.tune"], ["benchmarks/bench_kernels.py"]]
)
def test_without_torch_or_triton_it_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, absent: str, command: list[str]
) -> None:
    for name in ("torch", "triton"):
        text = f"raise ModuleNotFoundError(name={name!r})" if name == absent else "Tensor = 0"
        (tmp_path / f"{name}.py").write_text(text)
    root = Path(__file__).resolve().parents[2]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(root)]))
    done = subprocess.run(
        [sys.executable, *command], cwd=root, capture_output=True, text=True, check=False
    )
    told = f"{absent} is not installed: pip install 'fastrestore[kernels]'\n"
    assert (done.returncode, done.stdout, done.stderr) == (4, "", told)


def test_the_interpreter_is_not_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_card(monkeypatch)
    monkeypatch.setattr(launch, "INTERPRETED", True)
    assert tune.main([]) == 3
    assert capsys.readouterr().err.startswith("TRITON_INTERPRET")


def test_without_a_card_it_is_one_line_and_exit_code_4(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tune.main([]) == 4
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("tune: no CUDA device")
    assert err.count("\n") == 1
