"""`fastrestore live`: options, exit codes, pipes, signals.

A new process where the process itself matters; the same `main` within this one elsewhere.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from fastrestore import cli
from fastrestore.arrays import U8
from fastrestore.errors import EngineError, InputError
from fastrestore.images import Picture, write_picture
from fastrestore.live.policy import Step
from fastrestore.live.setup import open_ladder, pair
from fastrestore.live.stream import Stream
from fastrestore.video_io import read_frames, write_frames
from tests.fastrestore.live.fakes import FakeRestorer, ListSink, ListSource, until

H, W, N = 48, 64, 6
NANO = ("--model", "nano", "--backend", "ort", "--threads", "1")


class Result(NamedTuple):
    """What a run of the program left."""

    code: int
    err: str


Call = Callable[..., Result]


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """Run the command in this process."""

    def call(*args: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["fastrestore", "live", *map(str, args)])
        before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
        with pytest.raises(SystemExit) as e:
            cli.main()
        after = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
        signal.signal(signal.SIGTERM, before[1])
        assert after == [before[0], signal.default_int_handler]
        return Result(int(str(e.value.code)), capfd.readouterr().err)

    return call


def noisy(n: int = N) -> list[U8]:
    rng = np.random.default_rng(0)
    base = np.full((H, W, 3), 120.0)
    base[:, W // 2 :] = 60
    return [
        np.clip(base + rng.normal(0, 20, base.shape), 0, 255).astype(np.uint8) for _ in range(n)
    ]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("live") / "clip.mkv"
    write_frames(path, noisy(), codec="ffv1", fps=25)
    return path


def y4m(frames: list[U8]) -> bytes:
    """Write frames as 4:4:4 y4m, grey: luma alone differs."""
    out = [f"YUV4MPEG2 W{W} H{H} F25:1 C444\n".encode()]
    for f in frames:
        flat = np.full((H, W), 128, np.uint8)
        out += [b"FRAME\n", f[..., 0].tobytes(), flat.tobytes(), flat.tobytes()]
    return b"".join(out)


def test_a_file_becomes_a_file(live: Call, clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mkv"
    got = live("--source", clip, "--sink", out, "--encoder", "ffv1", *NANO)
    assert got.code == 0
    before, after = list(read_frames(clip)), list(read_frames(out))
    assert len(after) == N
    assert after[-1][:, : W // 4].std() < before[-1][:, : W // 4].std() / 2
    (line,) = [s for s in got.err.splitlines() if "frames in" in s]
    assert line.startswith(f"{clip} -> {out}: {N} frames in ")
    assert "0 dropped" in line


def test_with_a_mask_only_the_hole_changes(live: Call, clip: Path, tmp_path: Path) -> None:
    hole = np.zeros((H, W, 3), np.uint8)
    hole[20:26, 8:20] = 255
    write_picture(tmp_path / "mask.png", Picture(hole), hole)
    out = tmp_path / "out.mkv"
    mask = ("--mask", tmp_path / "mask.png", "--grow", "0", "--encoder", "ffv1")
    assert live("--source", clip, "--sink", out, *mask, *NANO).code == 0
    for a, b in zip(read_frames(clip), read_frames(out), strict=True):
        changed = np.abs(a.astype(int) - b).max(2) > 2  # FFV1 keeps YUV, not RGB
        assert changed[20:26, 8:20].any()
        assert not changed[hole[..., 0] == 0].any()


def test_a_mask_of_another_size_is_refused_in_words(live: Call, clip: Path, tmp_path: Path) -> None:
    hole = np.zeros((8, 8, 3), np.uint8)
    write_picture(tmp_path / "mask.png", Picture(hole), hole)
    got = live("--source", clip, "--sink", "none", "--mask", tmp_path / "mask.png", "-q", *NANO)
    assert got.code == 3
    assert "the mask is 8x8, the picture 64x48" in got.err


def test_several_streams_and_json(live: Call, clip: Path, tmp_path: Path) -> None:
    sinks = [tmp_path / "a.mkv", tmp_path / "b.mkv"]
    ends = [x for s in sinks for x in ("--source", clip, "--sink", s)]
    got = live(*ends, "--json", *NANO)
    assert got.code == 0
    assert [len(list(read_frames(s))) for s in sinks] == [N, N]
    last = json.loads(got.err.splitlines()[-1])
    assert (last["event"], last["runs"]) == ("summary", "nano on ort")
    assert [s["frames"] for s in last["streams"]] == [N, N]
    assert {"fps", "p50_ms", "p99_ms", "wait_p99_ms", "dropped", "queue"} <= set(last["streams"][0])


def test_one_of_several_streams_fails(live: Call, clip: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mkv"
    write_frames(broken, [np.zeros((16, 16, 3), np.uint8)] * 2, codec="ffv1", fps=25)
    mask = np.zeros((H, W, 3), np.uint8)
    write_picture(tmp_path / "mask.png", Picture(mask), mask)
    good = tmp_path / "good.mkv"
    ends = ("--source", clip, "--sink", good, "--source", broken, "--sink", "none")
    got = live(*ends, "--mask", tmp_path / "mask.png", "-q", *NANO)
    assert got.code == 1
    assert got.err.splitlines() == [
        f"fastrestore: {tmp_path / 'mask.png'}: the mask is 64x48, the picture 16x16; "
        "resize the mask"
    ]
    assert len(list(read_frames(good))) == N


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("--source", "0", "--when-late", "skip"), 3, "goes with --budget-ms only"),
        (("--source", "0", "--when-late", "x", "--budget-ms", "5"), 3, "name some of preset,box"),
        (("--source", "0", "--source", "1"), 3, "2 sources and 0 sinks: give one --sink for each"),
        (("--source", "-", "--source", "-", "--sink", "a", "--sink", "b"), 3, "named twice"),
        (("--source", "0", "--source", "1", "--sink", "a.mkv", "--sink", "./a.mkv"), 3, "twice"),
        (("--source", "a.mkv", "--sink", "a.mkv"), 3, "written to while it is read"),
        (("--source", "no.mkv", "--sink", "none", *NANO), 3, "no such file"),
        (("--source", "no.mkv", "--sink", ""), 3, "has no name"),
        (("--source", "0", "--sink", "none", "--seconds", "nan"), 3, "must be a number"),
        (("--source", "0", "--sink", "none", "--budget-ms", "inf"), 3, "must be a number"),
        (("--source", "0", "--budget-ms", "5", "--when-late", ""), 3, "name some of preset,box"),
        (("--source", "0", "--sink", "none", "--invert-mask"), 3, "goes with a mask"),
        (("--source", "0", "--sink", "a.mkv", "--output-format", "nut"), 3, "that of stdout"),
        (("--source", "-", "--sink", "none", "--input-size", "64", *NANO), 3, "like 640x480"),
        (("--source", "-", "--sink", "none", "--rate", "fast", *NANO), 2, "not like 25"),
        (("--source", "0", "--keep", "some"), 2, "--keep"),
        (("--source", "a.mkv", "--sink", "none", "--mask", "no.png"), 3, "no such mask"),
        ((), 2, "Usage"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    live: Call, args: tuple[str, ...], code: int, said: str
) -> None:
    got = live(*args)
    assert got.code == code
    assert said in got.err
    assert "Traceback" not in got.err
    if code == 3:
        assert len(got.err.splitlines()) == 1


def test_no_sink_replaces_its_source(tmp_path: Path) -> None:
    clip = tmp_path / "a.mkv"
    clip.touch()
    (tmp_path / "link.mkv").symlink_to(clip)
    for sink in (f"{tmp_path}/./a.mkv", f"{tmp_path}/link.mkv"):
        with pytest.raises(InputError, match="written to while it is read"):
            pair([str(clip)], [sink])
    with pytest.raises(InputError, match="written to while it is read"):
        pair([str(tmp_path)], [f"{tmp_path}/%05d.png"])


def test_an_error_is_json_where_all_else_is(live: Call) -> None:
    got = live("--source", "no.mkv", "--sink", "none", "--json", *NANO)
    assert got.code == 3
    said = json.loads(got.err)
    assert (said["event"], said["code"]) == ("error", 3)
    assert said["message"].startswith("no.mkv: no such file")


def test_a_terminal_gets_an_example_instead_of_video(
    live: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    got = live("--source", "0")
    assert got.code == 2
    assert len(got.err.splitlines()) == 1
    assert "add `| ffplay -f yuv4mpegpipe -` to see it" in got.err


def test_one_source_goes_to_stdout_alone() -> None:
    assert pair(["0"], []) == [("0", "-")]
    assert pair(["-"], ["-"]) == [("-", "-")]
    assert pair(["0", "1"], ["none", "none"]) == [("0", "none"), ("1", "none")]


def ladder(
    wanted: list[Step] | None = None,
    *,
    newest: bool = True,
    mask: str | None = None,
    sigma: float | None = None,
    model: str = "tiny",
    small: Callable[[], FakeRestorer] | None = lambda: FakeRestorer(name="nano"),
) -> tuple[str, bool]:
    from typing import cast

    from fastrestore.batch import Options
    from fastrestore.restore import Restorer

    _, opened, said = open_ladder(
        50,
        wanted,
        [Stream(ListSource([], live=newest), ListSink())],
        Options(mask=mask, sigma=sigma),
        cast(Restorer, FakeRestorer(name=model)),
        cast("Callable[[], Restorer] | None", small),
    )
    return said.partition("may give way: ")[2], opened is not None


def test_what_may_give_way() -> None:
    def no_engine() -> FakeRestorer:
        raise EngineError("no engine of nano")

    assert ladder() == ("preset, then skip", True)
    assert ladder(mask="auto", sigma=25.0) == ("preset, then box, then skip", True)
    assert ladder(mask="auto") == ("preset, then skip", True)
    assert ladder(newest=False) == ("preset", True)
    assert ladder(model="nano") == ("skip", False)
    assert ladder(small=None, newest=False) == ("nothing", False)
    assert ladder(small=no_engine) == ("skip", False)
    assert ladder(["skip", "preset"]) == ("skip, then preset", True)
    with pytest.raises(EngineError):
        ladder(["preset"], small=no_engine)


@pytest.mark.parametrize(
    ("step", "why"),
    [("preset", "no smaller model"), ("box", "there is no mask"), ("skip", "every frame is kept")],
)
def test_a_step_that_cannot_be_is_refused(step: Step, why: str) -> None:
    with pytest.raises(InputError, match=f"--when-late {step}: .*{why}"):
        ladder([step], newest=False, small=None)


def start(*args: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "fastrestore", "live", *args, *NANO]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)


def test_a_pipe_in_and_a_pipe_out_keep_every_frame() -> None:
    with start("--source", "-", "--sink", "-", "-q") as process:
        out, err = process.communicate(y4m(noisy(9)), timeout=30)
    assert (process.returncode, err) == (0, b"")
    assert out.startswith(b"YUV4MPEG2 ")
    head = out.index(b"\n") + 1
    assert f"W{W} H{H} F25:1".encode() in out[:head]
    frame = len(b"FRAME\n") + W * H * 3 // 2
    assert len(out) - head == 9 * frame


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize(
    ("keep", "number", "code"),
    [("newest", signal.SIGINT, 0), ("all", signal.SIGTERM, 130)],
)
def test_a_signal_ends_it_in_order(tmp_path: Path, keep: str, number: int, code: int) -> None:
    out = tmp_path / "out.mkv"
    with start("--source", "-", "--sink", str(out), "--keep", keep, "--json") as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(y4m(noisy(3)))
        process.stdin.flush()  # and it stays open: more could come
        until(lambda: any(p.stat().st_size for p in tmp_path.iterdir()), 20)
        process.send_signal(number)
        rest = process.stderr.read().decode().splitlines()
        assert process.wait(30) == code
        process.stdin.close()
    events = [json.loads(line)["event"] for line in rest if line.startswith("{")]
    assert events[-1] == "summary"
    assert 1 <= len(list(read_frames(out))) <= 3
    assert list(tmp_path.iterdir()) == [out]
