"""Frames to the network: they arrive, with their times, and nothing hangs."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from fractions import Fraction

import av
import numpy as np
import pytest

from fastrestore.errors import OutputError
from fastrestore.live.encode import choose_encoding
from fastrestore.live.frame import Sink
from fastrestore.live.sink_network import NETWORK_MUXERS, network_sink
from fastrestore.live.sinks import open_sink
from tests.fastrestore.live.clips import (
    PASSWORD,
    RATE,
    H,
    W,
    ended,
    free_port,
    in_thread,
    live_frame,
    nothing_left,
    tcp_server,
)

TICK = 1 / RATE


def short(address: str, timeout: float = 0.5) -> Sink:
    muxer = NETWORK_MUXERS[address.partition(":")[0]]
    return network_sink(address, choose_encoding(muxer, name=address), RATE, timeout)


def received(
    address: str, headers: list[bytes | None], options: dict[str, str] | None = None
) -> list[tuple[float, int]]:
    """Seconds and step of grey of each frame that comes to an address, and the codec's header."""
    frames = []
    with (
        av.open(address, timeout=5, options=options) as stream,
        suppress(av.error.OSError),
    ):  # RTMP's end
        headers.append(stream.streams.video[0].codec_context.extradata)
        for f in stream.decode(video=0):
            grey = round((f.to_ndarray(format="rgb24").mean() - 20) / 10)
            frames.append((float((f.pts or 0) * (f.time_base or 0)), grey))
    return frames


def check(frames: list[tuple[float, int]], kept: tuple[int, ...]) -> None:
    assert [grey for _, grey in frames] == list(kept)
    times = [t - frames[0][0] for t, _ in frames]
    assert times == pytest.approx([float(n * TICK) for n in kept], abs=0.0011)


def send(sink: Sink, kept: tuple[int, ...]) -> None:
    for n in kept:
        sink.write(live_frame(n, pts=n * TICK))
    sink.finish()


def wait_for_listener(port: int) -> None:
    """Return when somebody listens; it must not be asked: the servers here take one client."""
    end = time.monotonic() + 5
    while time.monotonic() < end:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return
        time.sleep(0.01)


def test_rtmp() -> None:
    port = free_port()
    address = f"rtmp://127.0.0.1:{port}/live/{PASSWORD}"
    headers: list[bytes | None] = []
    with nothing_left():
        server, result = in_thread(lambda: received(address, headers, {"listen": "1"}))
        wait_for_listener(port)
        sink = open_sink(address, rate=RATE)
        assert PASSWORD not in sink.name
        send(sink, (0, 1, 2, 5, 6, 9))
        assert ended(server)
        check(result[0], (0, 1, 2, 5, 6, 9))
        assert headers[0] is not None
        assert headers[0][0] == 1  # sent apart, before the first frame, as servers want it


def test_tcp() -> None:
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    with nothing_left():
        server, result = in_thread(lambda: received(f"{address}?listen=1", []))
        wait_for_listener(port)
        send(open_sink(address, rate=RATE), (0, 1, 2, 5))
        assert ended(server)
        check(result[0], (0, 1, 2, 5))


def test_udp_packets_fit_into_ethernet() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(2)
        sink = open_sink(f"udp://127.0.0.1:{receiver.getsockname()[1]}", rate=RATE, crf=0)
        noise = np.random.default_rng(0).integers(0, 256, (H, W, 3), np.uint8)
        sink.write(live_frame(0, noise))
        sink.finish()
        packets = [receiver.recv(65536) for _ in range(3)]
    assert [len(packet) for packet in packets] == [7 * 188] * 3
    assert all(packet[0] == 0x47 for packet in packets)  # MPEG-TS


@pytest.mark.parametrize("kind", ["rtmp", "rtsp", "tcp", "srt"])
def test_nobody_there(kind: str) -> None:
    with nothing_left():
        sink = open_sink(f"{kind}://me:{PASSWORD}@127.0.0.1:{free_port()}/live/key", rate=RATE)
        with pytest.raises(OutputError) as e:
            send(sink, tuple(range(20)))
        sink.abandon()
    words = "connection refused" if kind != "srt" else "PyAV cannot open srt://"
    assert words in str(e.value)
    assert PASSWORD not in f"{e.value!r} {e.value.__cause__!r} {e.value.__context__!r}"


@pytest.mark.parametrize("kind", ["rtmp", "rtsp"])
def test_a_server_that_says_nothing(kind: str) -> None:
    """Python goes on meanwhile, and the wait has an end."""
    stop = threading.Event()
    with nothing_left(), tcp_server(b"", then=lambda: stop.wait(5)) as port:
        sink = short(f"{kind}://127.0.0.1:{port}/live/key")
        thread, result = in_thread(lambda: send(sink, tuple(range(20))))
        turns = 0
        while thread.is_alive():
            time.sleep(0.01)
            turns += 1
        assert isinstance(result[0], OutputError)
        assert "answer" in str(result[0])
        assert turns > 5  # a wait that holds the GIL leaves one or two
        sink.abandon()
        stop.set()


def test_a_server_that_stops_reading() -> None:
    stop = threading.Event()
    with nothing_left(), tcp_server(b"", then=lambda: stop.wait(5)) as port:
        encoding = choose_encoding("mpegts", name="tcp", crf=0, pixel_format="yuv444p")
        sink = network_sink(f"tcp://127.0.0.1:{port}", encoding, RATE, 0.3)
        noise = np.random.default_rng(0).integers(0, 256, (720, 1280, 3), np.uint8)
        with pytest.raises(OutputError, match="no answer"):
            list(map(sink.write, (live_frame(i, noise, pts=Fraction(i)) for i in range(30))))
        sink.abandon()
        stop.set()
