"""Which streams of a transport stream belong to which program, from its own tables."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_LOOK_BYTES = 4 << 20  # the tables come several times a second
_SYNC = 0x47
_STEPS = {188: 0, 192: 4, 204: 0}  # bytes from packet to packet -> of a packet's own head
_NO_PROGRAM = 0  # the network's own table


def read_programs(path: Path) -> dict[int, frozenset[int]]:
    """Return the elementary streams of every program, by their packet identifiers.

    Args:
        path: A file; one that is no transport stream has no programs.

    Source: ISO/IEC 13818-1, sections 2.4.3.2 and 2.4.4.
    """
    with open(path, "rb") as file:
        data = file.read(_LOOK_BYTES)
    maps: dict[int, int] = {}  # packet identifier of a program's map -> program
    found: dict[int, frozenset[int]] = {}
    for pid, section in _sections(data, maps):
        body = section[8:-4]  # between the head and the checksum
        if pid == 0 and section[0] == 0:
            for i in range(0, len(body) - 3, 4):
                program, where = _u16(body, i), _u16(body, i + 2) & 0x1FFF
                if program != _NO_PROGRAM:
                    maps[where] = program
        elif pid in maps and section[0] == 2:
            found.setdefault(maps[pid], _streams(body))
    return found


def _streams(body: bytes) -> frozenset[int]:
    """Read the streams of a program's map."""
    pids, at = set(), 4 + (_u16(body, 2) & 0xFFF)
    while at + 5 <= len(body):
        pids.add(_u16(body, at + 1) & 0x1FFF)
        at += 5 + (_u16(body, at + 3) & 0xFFF)
    return frozenset(pids)


def _sections(data: bytes, maps: dict[int, int]) -> Iterator[tuple[int, bytes]]:
    """Yield whole tables with their packet identifiers: of programs, and those in `maps`."""
    growing: dict[int, bytes] = {}
    for packet in _packets(data):
        pid = _u16(packet, 1) & 0x1FFF
        if (pid and pid not in maps) or not packet[3] & 0x10:
            continue
        payload = packet[5 + packet[4] :] if packet[3] & 0x20 else packet[4:]
        if packet[1] & 0x40 and payload:  # a table begins behind the pointer
            growing[pid] = payload[1 + payload[0] :]
        elif pid in growing:
            growing[pid] += payload
        table = growing.get(pid, b"")
        if len(table) >= 3 and len(table) >= (size := 3 + (_u16(table, 1) & 0xFFF)):
            del growing[pid]
            if size > 12:
                yield pid, table[:size]


def _packets(data: bytes) -> Iterator[bytes]:
    """Yield packets of 188 bytes; nothing where their rhythm is not found."""
    for step, head in _STEPS.items():
        if len(data) >= 3 * step and all(data[head + i * step] == _SYNC for i in range(3)):
            for at in range(head, len(data) - 187, step):
                if data[at] == _SYNC:
                    yield data[at : at + 188]
            return


def _u16(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 2], "big")
