"""Streams of the network: what comes, what is refused, what is lost, and that nothing hangs."""

from __future__ import annotations

import base64
import http.server
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from fastrestore.errors import InputError
from fastrestore.live.addresses import break_off, masked, problem
from fastrestore.live.frame import SourceLostError
from fastrestore.live.source_network import open_network
from fastrestore.live.sources import open_source
from tests.fastrestore.live.clips import (
    PASSWORD,
    RATE,
    H,
    W,
    clip,
    drain,
    ended,
    free_port,
    greys,
    in_thread,
    nothing_left,
    tcp_server,
)

MAX_PIXELS = 10**6
TS = clip("mpegts")
LONG_TS = clip("mpegts", 40)  # more than is looked at before the first frame
ALLOWED = "Basic " + base64.b64encode(f"me:{PASSWORD}".encode()).decode()


class Handler(http.server.BaseHTTPRequestHandler):
    """`/file`, `/endless`, `/list` and so on, and codes like `/404`."""

    secret: Path

    def log_message(self, *_: object) -> None:
        return

    def do_GET(self) -> None:
        path = self.path[1:]
        if path.isdigit() or (path == "locked" and self.headers["Authorization"] != ALLOWED):
            code = int(path) if path.isdigit() else 401
            self.send_response(code)
            self.send_header("WWW-Authenticate", 'Basic realm="camera"')
            self.end_headers()
        elif path in ("file", "file.ts", "locked"):
            self.answer(TS, length=True)
        elif path == "endless":
            self.answer(TS)
        elif path == "chunks":
            self.answer(b"%x\r\n%s\r\n0\r\n\r\n" % (len(TS), TS), chunked=True)
        elif path == "mjpeg":
            pictures = [
                cv2.imencode(".jpg", np.full((H, W, 3), 90, np.uint8))[1].tobytes() for _ in "123"
            ]
            parts = [b"--x\r\nContent-Type: image/jpeg\r\n\r\n" + p + b"\r\n" for p in pictures]
            self.answer(b"".join(parts), kind="multipart/x-mixed-replace;boundary=x")
        elif path == "list":
            text = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{self.secret.as_uri()}\n"
            kind = "application/vnd.apple.mpegurl"
            self.answer(f"{text}#EXT-X-ENDLIST\n".encode(), length=True, kind=kind)
        elif path == "list-of-addresses":
            where = f"http://127.0.0.1:{self.server.server_address[1]}/file.ts"
            text = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{where}\n"
            kind = "application/vnd.apple.mpegurl"
            self.answer(f"{text}#EXT-X-ENDLIST\n".encode(), length=True, kind=kind)
        elif path == "elsewhere":
            self.send_response(302)
            self.send_header("Location", self.secret.as_uri())
            self.end_headers()

    def answer(
        self,
        data: bytes,
        *,
        length: bool = False,
        chunked: bool = False,
        kind: str = "video/mp2t",
    ) -> None:
        self.send_response(200)
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        self.send_header("Content-Type", kind)
        if length:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    Handler.secret = tmp_path_factory.mktemp("web") / "secret.ts"
    Handler.secret.write_bytes(TS)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_file_on_a_web_server_keeps_every_frame(web: str) -> None:
    source = open_source(f"http://{web}/file")
    assert (source.live, source.rate) == (False, RATE)
    time.sleep(0.1)  # it waits for us
    frames = drain(source)
    assert greys(frames) == [f.number for f in frames] == list(range(10))
    assert frames[0].pts is not None
    assert [f.pts - frames[0].pts for f in frames if f.pts is not None] == [
        i / RATE for i in range(10)
    ]
    source.close()


@pytest.mark.parametrize(("path", "words"), [("chunks", "has ended it"), ("endless", "broke off")])
def test_a_stream_of_a_web_server_is_lost_when_it_ends(web: str, path: str, words: str) -> None:
    source = open_source(f"http://{web}/{path}")
    assert source.live
    with pytest.raises(SourceLostError, match=words):
        drain(source)
    source.close()


def test_the_newest_frame_wins(web: str) -> None:
    source = open_source(f"http://{web}/endless")
    assert all(ended(t) for t in threading.enumerate() if t.name.startswith("reads http"))
    time.sleep(0.06)
    first = source.read()
    assert first is not None
    assert first.number == 9
    assert time.monotonic() - first.captured > 0.05  # stamped when it came, not when it was read
    source.close()


def test_motion_jpeg_of_a_camera(web: str) -> None:
    source = open_source(f"http://{web}/mjpeg")
    frame = source.read()
    assert frame is not None
    assert abs(frame.rgb.astype(int) - 90).max() <= 2
    source.close()


def test_user_and_password(web: str) -> None:
    source = open_source(f"http://me:{PASSWORD}@{web}/locked")
    assert source.name == f"http://***@{web}/locked"
    assert len(drain(source)) == 10
    source.close()


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("401", "(401)"),
        ("locked", "(401)"),
        ("403", "(403)"),
        ("404", "(404)"),
        ("418", "(4xx)"),
        ("list", "no video that is known"),
        ("list-of-addresses", "no video that is known"),
        ("elsewhere", "no video that is known"),
    ],
)
def test_refused_for_good(web: str, path: str, words: str) -> None:
    with nothing_left(), pytest.raises(InputError) as e:
        open_source(f"http://me:wrong{PASSWORD}@{web}/{path}")
    assert not isinstance(e.value, SourceLostError)
    assert words in str(e.value)
    shown = f"{e.value!r} {e.value.__cause__!r} {e.value.__context__!r}"
    assert PASSWORD not in shown
    assert "\n" not in str(e.value)


def test_may_come_up(web: str) -> None:
    with pytest.raises(SourceLostError, match="5XX"):
        open_source(f"http://{web}/503")
    for kind in ("http", "https", "rtsp", "rtsps", "rtmp", "tcp"):
        address = f"{kind}://me:{PASSWORD}@127.0.0.1:{free_port()}/live/key"
        with nothing_left(), pytest.raises(SourceLostError, match="connection refused") as e:
            open_source(address)
        assert PASSWORD not in f"{e.value!r} {e.value.__context__!r}"


@pytest.mark.parametrize("kind", ["tcp", "http", "rtsp", "rtmp"])
def test_a_server_that_says_nothing(kind: str) -> None:
    stop = threading.Event()
    with nothing_left(), tcp_server(b"", then=lambda: stop.wait(5)) as port:
        before = time.monotonic()
        with pytest.raises(SourceLostError, match=r"no answer for 0\.3 s"):
            open_network(f"{kind}://127.0.0.1:{port}/x", max_pixels=MAX_PIXELS, timeout=0.3)
        assert time.monotonic() - before < 3
        stop.set()


def test_a_stream_that_falls_silent() -> None:
    stop = threading.Event()
    with nothing_left(), tcp_server(LONG_TS, then=lambda: stop.wait(5)) as port:
        source = open_network(f"tcp://127.0.0.1:{port}", max_pixels=MAX_PIXELS, timeout=0.5)
        assert source.live
        with pytest.raises(SourceLostError, match=r"nothing has come for 0\.5 s"):
            drain(source)
        source.close()
        stop.set()


def test_close_wakes_a_read() -> None:
    stop = threading.Event()
    with nothing_left(), tcp_server(LONG_TS, then=lambda: stop.wait(5)) as port:
        source = open_network(f"tcp://127.0.0.1:{port}", max_pixels=MAX_PIXELS, timeout=1)
        thread, result = in_thread(lambda: (drain(source), time.monotonic()))
        time.sleep(0.2)
        assert thread.is_alive()
        source.close()  # waits until the library has let go
        closed = time.monotonic()
        assert ended(thread)
        frames, woken = result[0]
        assert frames
        assert woken < closed
        assert source.read() is None
        source.close()
        stop.set()


def test_tcp_ends_when_the_sender_has_done() -> None:
    with nothing_left(), tcp_server(TS) as port:
        source = open_source(f"tcp://127.0.0.1:{port}")
        assert drain(source)[-1].number == 9
        source.close()


@contextmanager
def sender(port: int, data: bytes) -> Iterator[None]:
    """Sends a stream by UDP again and again, ten packets of it at a time."""
    stop = threading.Event()

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
            while not stop.is_set():
                for at in range(0, len(data), 1316):
                    out.sendto(data[at : at + 1316], ("127.0.0.1", port))
                stop.wait(0.02)

    thread, _ = in_thread(send)
    yield
    stop.set()
    thread.join()


def test_udp() -> None:
    port = free_port()
    with nothing_left(), sender(port, TS):
        source = open_network(f"udp://127.0.0.1:{port}", max_pixels=MAX_PIXELS, timeout=2)
        frames = drain(source, limit=5)
        assert source.live
        assert frames[0].rgb.shape == (H, W, 3)
        source.close()


def test_too_large(web: str) -> None:
    with nothing_left(), pytest.raises(InputError, match="more than 100 pixels"):
        open_source(f"http://{web}/file", max_pixels=100)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("rtsp://camera/main", "rtsp://camera/main"),
        ("rtsp://me:pw@camera:554/main?key=pw#pw", "rtsp://***@camera:554/main"),
        ("rtsp://me:p@w/p?w#@camera/main", "rtsp://***@camera/main"),
        ("RTMP://host/app/pw", "RTMP://host/app/***"),
        ("rtmps://me:pw@host:443/app/pw?x=pw", "rtmps://***@host:443/app/***"),
        ("srt://host:9000?passphrase=pw", "srt://host:9000"),
        ("http://host/a\nb", "'http://host/a\\nb'"),
    ],
)
def test_addresses_without_their_secrets(address: str, shown: str) -> None:
    assert masked(address) == shown


def test_unknown_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    error = av.error.OSError(5, "Input/output error")
    words, passing = problem(f"rtsp://me:{PASSWORD}@attic:554/x", error, 5)
    assert words.startswith("host attic is not known")
    assert passing
    assert break_off(error, 5) == "broke off (Input/output error)"


def test_srt_says_how_to_do_without() -> None:
    with pytest.raises(InputError) as e:
        open_source(f"srt://127.0.0.1:9?passphrase={PASSWORD}")
    if not isinstance(e.value, SourceLostError):  # a PyAV that knows it finds nobody there
        assert "ffmpeg -i ADDRESS" in str(e.value)
    assert PASSWORD not in str(e.value)
