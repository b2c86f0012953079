"""Tables of transport streams, in packets of every length, over several packets, and broken."""

from __future__ import annotations

import sys
from pathlib import Path

import av
import pytest

from fastrestore.ts_programs import read_programs
from fastrestore.video_io import VideoReader

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from container_kinds import KINDS

TWO = {1: frozenset({0x100, 0x101}), 2: frozenset({0x300, 0x301})}


@pytest.fixture
def two(tmp_path: Path) -> Path:
    return KINDS["two programs, MPEG-TS"](tmp_path).path


def test_two_programs_and_what_is_foreign(two: Path) -> None:
    assert read_programs(two) == TWO
    with VideoReader(two) as reader:
        assert reader.foreign_ids == TWO[2]
    with av.open(str(two)) as c:
        assert [s.id for s in c.streams] == [0x100, 0x101, 0x300, 0x301]


@pytest.mark.parametrize(("head", "tail"), [(b"\0\0\0\0", b""), (b"", b"\0" * 16)])
def test_packets_with_a_head_or_a_tail(two: Path, head: bytes, tail: bytes) -> None:
    data = two.read_bytes()
    two.write_bytes(b"".join(head + data[i : i + 188] + tail for i in range(0, len(data), 188)))
    assert read_programs(two) == TWO


def packet(pid: int, payload: bytes, begins: bool, filler: int = 0) -> bytes:
    head = b"\x47" + (pid | 0x4000 * begins).to_bytes(2, "big")
    room = 184 - len(payload)
    if filler:
        return head + b"\x30" + bytes([room - 1]) + b"\0" * (room - 1) + payload
    return head + b"\x10" + payload.ljust(184, b"\xff")


def test_a_table_over_several_packets(tmp_path: Path) -> None:
    streams = range(0x400, 0x450)
    body = b"\xe4\0\xf0\0" + b"".join(
        b"\x1b" + (0xE000 | pid).to_bytes(2, "big") + b"\xf0\0" for pid in streams
    )
    table = b"\2" + (0xB000 | (len(body) + 9)).to_bytes(2, "big") + b"\0\7\xc1\0\0" + body + b"crc!"
    programs = b"\0\0\xb0\x0d\0\1\xc1\0\0\0\7\xf0\0crc!"
    rest = b"\0" + table
    parts = [packet(0, programs, True)]
    while rest:
        parts.append(packet(0x1000, rest[:150], len(rest) == len(table) + 1, filler=1))
        rest = rest[150:]
    (tmp_path / "a.ts").write_bytes(b"".join(parts))
    assert read_programs(tmp_path / "a.ts") == {7: frozenset(streams)}


def test_what_is_no_transport_stream_has_no_programs(tmp_path: Path, two: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    (tmp_path / "b").write_bytes(bytes(range(256)) * 40)
    data = two.read_bytes()
    (tmp_path / "c").write_bytes(data[:188] + b"\x47" + b"\xff" * 600)
    (tmp_path / "d").write_bytes((b"\x47\x40\0\x10\0\0\xb0\2" + b"\xff" * 180) * 4)
    assert [read_programs(tmp_path / name) for name in "abcd"] == [{}] * 4
