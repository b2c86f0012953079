"""Time stamps of a file moved to the clock of its copy: from 0 on, rising, without jumps.

Most files need nothing of this. Transport and program streams start anywhere, often hours in, and
jump where a recording was cut or joined. Raw streams have no stamps, and AVI knows only when a
frame is decoded.
"""

from __future__ import annotations

from collections import deque
from fractions import Fraction
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from av import VideoFrame, VideoStream
    from av.container import InputContainer
    from av.packet import Packet

DEFAULT_RATE = Fraction(25)
_BROADCAST = ("mpegts", "mpeg")
_RAW = ("h264", "hevc")
_DECODING_TIMES = ("avi",)
# How far a stream's next packet may be from where the last one ended, seconds; farther is a jump.
_BACK_S, _AHEAD_S = Fraction(1, 10), Fraction(10)
_NEAR_S = Fraction(1)  # a packet of another stream that is so near goes on with its stream


def raw_rate(
    container: InputContainer, stream: VideoStream, wish: Fraction | None
) -> Fraction | None:
    """Return the frames per second of a stream without time stamps; None: it has them.

    Args:
        container: Open.
        stream: The one that is meant.
        wish: What the user says; None: what the stream says, else 25.
    """
    if container.format.name not in _RAW:
        return None
    return wish or told_rate(stream) or DEFAULT_RATE


def told_rate(stream: VideoStream) -> Fraction | None:
    """Return what a raw stream says of its rate: its container's words are a guess."""
    rate = stream.codec_context.framerate
    return Fraction(rate.numerator, rate.denominator) if rate else None


class Clock:
    """The clock of one file that is read once, from its beginning.

    Attributes:
        time_base: Seconds per tick of the frames' stamps.
        origin: Seconds on the file's clock that become 0.
        end: Where the last packet so far ends, seconds on the copy's clock.
        jumps: Breaks in the video's stamps that were closed.
    """

    def __init__(
        self, container: InputContainer, stream: VideoStream, raw_rate: Fraction | None
    ) -> None:
        """Begin.

        Args:
            container: Open, nothing read yet.
            stream: The video that is meant.
            raw_rate: From the function of that name.
        """
        self.is_broadcast = container.format.name in _BROADCAST
        tb, start = stream.time_base, Fraction(container.start_time or 0, 10**6)
        self._video, self._raw_rate = stream.index, raw_rate
        self.time_base = Fraction(tb.numerator, tb.denominator) if tb else Fraction(1, 1000)
        if raw_rate:
            self.time_base = 1 / raw_rate
        self.origin = start if self.is_broadcast else Fraction(0)
        self.end, self.jumps = Fraction(0), 0
        self._offsets = [-self.origin]  # one more for each jump of the video
        # By stream: where its last packet began, how long it was, where it ended.
        self._at: dict[int, Fraction] = {}
        self._step: dict[int, Fraction] = {}
        self._next: dict[int, Fraction] = {}
        by_order = container.format.name in _DECODING_TIMES
        self._due: deque[int] | None = deque() if by_order else None

    @property
    def finds_frames(self) -> bool:
        """Whether a frame's stamp finds it in the file."""
        return self._raw_rate is None and self._due is None and not self.jumps

    def move(self, packet: Packet[Any]) -> None:
        """Move a packet's stamps to the copy's clock and remember where it ends."""
        tb = packet.time_base
        if packet.pts is None or not tb:
            return
        tick = Fraction(tb.numerator, tb.denominator)
        if self.is_broadcast:
            at = (packet.pts if packet.dts is None else packet.dts) * tick
            index = packet.stream.index
            is_video = index == self._video
            offset = self._video_offset(at) if is_video else self._other_offset(packet, at)
            self._expect(index, at + offset, (packet.duration or 0) * tick)
            moved = round(offset / tick)
            packet.pts += moved
            if packet.dts is not None:
                packet.dts += moved
        self.end = max(self.end, (packet.pts + (packet.duration or 0)) * tick)

    def _expect(self, index: int, at: Fraction, length: Fraction) -> None:
        """Note where a stream goes on; one that tells no lengths goes on at its own pace."""
        step = at - self._at.get(index, at)
        if not length:
            length = step if 0 < step <= _NEAR_S else self._step.get(index, Fraction(0))
        self._at[index], self._step[index] = at, length
        self._next[index] = at + length

    def _video_offset(self, at: Fraction) -> Fraction:
        """Return what to add to a packet of the video, which the others follow."""
        offset, due = self._offsets[-1], self._next.get(self._video)
        if due is not None and not -_BACK_S <= at + offset - due <= _AHEAD_S:
            offset = due - at
            self._offsets.append(offset)
            self.jumps += 1
        return offset

    def _other_offset(self, packet: Packet[Any], at: Fraction) -> Fraction:
        """Return what to add to a packet of another stream: around a jump it may be early or late.

        Either it goes on with its own stream, or it lies where the video is. Sound ahead of the
        video's jump fits nowhere yet: it follows its last packet.
        """
        due, video = self._next.get(packet.stream.index), self._next.get(self._video)
        for clock, reach in ((due, _NEAR_S), (video, _AHEAD_S)):
            if clock is not None:
                gap, near = min((abs(at + offset - clock), offset) for offset in self._offsets)
                if gap <= reach:
                    return near
        if due is not None and packet.stream.type == "audio":
            return due - at
        return self._offsets[-1]

    def sent(self, packet: Packet[Any]) -> None:
        """Take note of a packet that the decoder has taken."""
        if self._due is not None and packet.size and packet.dts is not None:
            self._due.append(packet.dts)

    def time_of(self, frame: VideoFrame, number: int) -> int | None:
        """Return when a frame is shown, in ticks of `time_base`; None = unknown.

        Args:
            frame: As decoded; frames come in the order of time.
            number: Of the frame, from 0.
        """
        if self._raw_rate is not None:
            frame.duration = 1
            return number
        if self._due is not None:  # as many come out as went in: the first is shown first
            return self._due.popleft() if self._due else None
        return frame.pts
