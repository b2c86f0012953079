"""Streams that are copied, dropped with a word, or need care: lead-in, covers, broken stamps."""

from __future__ import annotations

import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from fastrestore import stream_copies
from fastrestore.stream_copies import MUXERS, tried
from fastrestore.video import restore_video

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from container_clips import FONT, Plan, edited, write
from container_kinds import SOUND


def same(rgb: Any) -> Any:
    return rgb


def packets(path: Path, kind: str, index: int = 0) -> list[tuple[bytes, float, bool]]:
    with av.open(str(path)) as c:
        stream = getattr(c.streams, kind)[index]
        return [
            (bytes(p), float((p.pts or 0) * p.time_base), p.is_discard)
            for p in c.demux(stream) if p.size
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("codec", "suffixes"),
    [
        ("subrip", {".mkv"}),
        ("mov_text", {".mp4", ".mov"}),
        ("hdmv_pgs_subtitle", {".mkv"}),
        ("opus", {".mp4", ".mkv", ".webm"}),
    ],
)
def test_what_a_header_takes_is_tried(codec: str, suffixes: set[str]) -> None:
    found = {s for s in MUXERS if tried(s, lambda c: c.add_mux_stream(codec, rate=48000))}
    assert found == suffixes


def test_fonts_and_covers_come_out_byte_for_byte(tmp_path: Path) -> None:
    source = write(tmp_path / "in.mkv", replace(SOUND, font=True, cover=True)).path
    assert restore_video(source, tmp_path / "o.mkv", same).notes == []
    with av.open(str(tmp_path / "o.mkv")) as c:
        font = next(s for s in c.streams if s.type == "attachment")
        assert (font.name, font.mimetype, font.data) == (
            "a.ttf", "application/x-truetype-font", FONT,
        )  # fmt: skip
        cover = c.streams.video[1]
        assert cover.metadata["filename"] == "cover.jpg"
        assert cover.disposition & av.stream.Disposition.attached_pic
    assert packets(tmp_path / "o.mkv", "video", 1)[0][0] == packets(source, "video", 1)[0][0]
    assert restore_video(source, tmp_path / "o.mov", same).notes == [
        "dropped: video #2, MOV cannot hold covers; use .mp4 or .mkv",
        "dropped: attachment #3, MOV cannot hold attachments; use .mkv",
    ]


def test_the_mend_names_what_holds_it(tmp_path: Path) -> None:
    source = write(tmp_path / "in.mp4", replace(SOUND, texts=("mov_text",))).path
    assert restore_video(source, tmp_path / "o.webm", same).notes == [
        "dropped: audio #1, WebM cannot hold AAC; use .mp4 or .mov or .mkv",
        "dropped: subtitle #2, WebM cannot hold 3GPP Timed Text; use .mp4 or .mov",
    ]


def test_text_of_mp4_does_not_grow_from_copy_to_copy(tmp_path: Path) -> None:
    source = write(tmp_path / "in.mp4", replace(SOUND, texts=("mov_text",))).path
    restore_video(source, tmp_path / "1.mp4", same)
    restore_video(tmp_path / "1.mp4", tmp_path / "2.mp4", same)
    text = packets(source, "subtitles")
    assert [p[1] for p in text] == [0, 0.1, 0.3, 0.5]
    for copy in ("1.mp4", "2.mp4"):
        assert packets(tmp_path / copy, "subtitles") == text


def test_sound_before_an_edit_list_is_not_heard(tmp_path: Path) -> None:
    clip = edited(edited(write(tmp_path / "in.mp4", SOUND), ((10, 20),)), ((10, 20),), 1)
    hidden = [p for p in packets(clip.path, "audio") if p[2]]
    assert len(hidden) > 15
    for suffix in (".mp4", ".mkv"):
        assert restore_video(clip.path, tmp_path / f"o{suffix}", same).frames == 10
    heard = [p[0] for p in packets(clip.path, "audio") if not p[2]]
    copied = packets(tmp_path / "o.mp4", "audio")
    assert [p[2] for p in copied] == [True] * len(hidden) + [False] * len(heard)
    # One packet ahead, that a decoder begins with, is all that Matroska gets.
    assert [p[0] for p in packets(tmp_path / "o.mkv", "audio")] == [hidden[-1][0], *heard]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_sound_that_was_cut_out_is_not_heard(tmp_path: Path, suffix: str) -> None:
    spans = ((0, 5), (12, 20))
    clip = edited(edited(write(tmp_path / "in.mp4", SOUND), spans), spans, 1)
    assert restore_video(clip.path, tmp_path / f"o{suffix}", same).frames == 13
    heard = [p for p in packets(clip.path, "audio") if not p[2]]
    hidden = [p for p in packets(clip.path, "audio") if p[2]]
    assert len(hidden) > 10
    copied = [p for p in packets(tmp_path / f"o{suffix}", "audio") if p[0] != hidden[0][0]]
    assert [p[0] for p in copied] == [p[0] for p in heard]
    lag = np.subtract([p[1] for p in copied], [p[1] for p in heard])
    assert np.ptp(lag) < 0.0012  # Matroska counts milliseconds


def test_a_timecode_that_does_not_fit_is_dropped_with_a_word(tmp_path: Path) -> None:
    source = write(tmp_path / "in.mkv", replace(SOUND, timecode="01:00:00;00")).path
    notes = restore_video(source, tmp_path / "o.mp4", same).notes  # drop frame, at 25
    assert notes == ["dropped: timecode 01:00:00;00, it does not fit 25 frames a second"]
    assert restore_video(source, tmp_path / "o.mkv", same).notes == []


def test_pixel_shape_stays_or_is_said(tmp_path: Path) -> None:
    shape = Fraction(16, 11)
    plan = Plan(tags=(("sample_aspect_ratio", shape),), clock=25)
    source = write(tmp_path / "in.mkv", plan).path
    for name, encoder, kept in (
        ("a.mkv", "x264", True), ("b.mp4", "x265", True), ("c.mp4", "vp9", True),
        ("d.mkv", "ffv1", False), ("e.mkv", "svt-av1", False),
    ):  # fmt: skip
        notes = restore_video(source, tmp_path / name, same, encoder=encoder).notes
        with av.open(str(tmp_path / name)) as c:
            next(c.decode(video=0))
            v = c.streams.video[0]
            found = v.sample_aspect_ratio or v.codec_context.sample_aspect_ratio
        assert (found == shape) == kept, name
        words = ["dropped: pixel shape 16:11; x264 and x265 keep it here, or .mp4"]
        assert notes == ([] if kept else words)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_sound_that_steps_back_is_moved_on(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "in.mkv", SOUND).path
    real = stream_copies.Copies.write
    seen = 0

    def broken(self: Any, packet: Any) -> None:
        nonlocal seen
        seen += 1
        if seen in (6, 7, 20):
            packet.pts = packet.dts = 60
        real(self, packet)

    monkeypatch.setattr(stream_copies.Copies, "write", broken)
    assert restore_video(source, tmp_path / f"o{suffix}", same).notes == []
    copied = packets(tmp_path / f"o{suffix}", "audio")
    assert [p[0] for p in copied] == [p[0] for p in packets(source, "audio")]
    assert np.diff([p[1] for p in copied]).min() >= 0


def test_h265_in_mp4_has_the_name_that_apple_knows(tmp_path: Path) -> None:
    source = write(tmp_path / "in.mkv", Plan()).path
    for suffix, tag in ((".mp4", "hvc1"), (".mov", "hvc1")):
        restore_video(source, tmp_path / f"o{suffix}", same, encoder="x265")
        with av.open(str(tmp_path / f"o{suffix}")) as c:
            assert c.streams.video[0].codec_context.codec_tag == tag


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_sound_that_the_file_refuses_does_not_end_the_clip(tmp_path: Path, suffix: str) -> None:
    source = write(tmp_path / "in.ts", SOUND).path
    whole = packets(source, "audio")
    data, head = source.read_bytes(), whole[9][0][:7]
    assert data.count(head) == 1
    source.write_bytes(data.replace(head, head[:1] + b"\0" + head[2:]))
    target = tmp_path / f"o{suffix}"
    report = restore_video(source, target, same)
    assert report.frames == len(SOUND.times)
    assert report.notes == ["1 damaged packets of audio #1 are left out"]
    assert 1 <= len(whole) - len(packets(target, "audio")) <= 3
