"""Cameras, by a stand-in for OpenCV's VideoCapture: there was none to try."""

from __future__ import annotations

import os
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from fastrestore.errors import InputError
from fastrestore.live import source_camera
from fastrestore.live.frame import LiveFrame, SourceLostError
from fastrestore.live.source_camera import is_camera
from fastrestore.live.sources import open_source
from tests.fastrestore.live.clips import drain, ended, in_thread, nothing_left

H, W = 4, 6
FPS = cv2.CAP_PROP_FPS


class Camera:
    """What the tests set, and what was asked of it."""

    pictures = 3
    opens = True
    fps = 30.0
    stalled = threading.Event()

    def __init__(self, source: object, backend: int) -> None:
        self.source, self.backend = source, backend
        self.asked: dict[int, float] = {}
        self.released = False
        self.taken = 0
        type(self).last = self

    last: Any = None

    def isOpened(self) -> bool:
        return self.opens

    def set(self, what: int, value: float) -> bool:
        self.asked[what] = value
        return True

    def get(self, what: int) -> float:
        sizes = {cv2.CAP_PROP_FRAME_WIDTH: W, cv2.CAP_PROP_FRAME_HEIGHT: H}
        return self.fps if what == FPS else sizes[what]

    def read(self) -> tuple[bool, Any]:
        if self.taken == self.pictures:
            self.stalled.wait(5)
            return False, None
        self.taken += 1
        time.sleep(0.01)
        return True, np.full((H, W, 3), (10, 20, 30 + self.taken), np.uint8)

    def release(self) -> None:
        self.released = True


@pytest.fixture
def camera(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[Camera]:
    class Mine(Camera):
        stalled = threading.Event()

    Mine.stalled.set()
    (tmp_path / "video0").touch()
    monkeypatch.setattr(cv2, "VideoCapture", Mine)
    monkeypatch.setattr(source_camera, "DEVICES", tmp_path)
    monkeypatch.setattr(sys, "platform", "linux")
    return Mine


def test_what_means_a_camera() -> None:
    assert all(map(is_camera, ("0", "12", "/dev/video3")))
    assert not any(map(is_camera, ("", "-1", "0.mp4", "/dev/video", "/dev/videos/1", "1234")))


def test_pictures_until_it_is_unplugged(camera: type[Camera], tmp_path: Path) -> None:
    with nothing_left():
        source = open_source("0")
        assert (source.name, source.live, source.rate) == (str(tmp_path / "video0"), True, 30)
        frames: list[LiveFrame] = []
        with pytest.raises(SourceLostError, match="still plugged in"):
            frames.extend(iter(source.read, None))
        assert frames[-1].number == 2
        assert frames[-1].rgb[0, 0].tolist() == [33, 20, 10]  # red first
        assert frames[-1].pts is None
        source.close()
    assert (camera.last.source, camera.last.backend) == (0, cv2.CAP_V4L2)
    assert camera.last.released


def test_wishes(camera: type[Camera]) -> None:
    source = open_source("0", input_size=(1280, 720), rate=Fraction(60))
    asked = camera.last.asked
    assert asked[cv2.CAP_PROP_FRAME_WIDTH], asked[cv2.CAP_PROP_FRAME_HEIGHT] == (1280, 720)
    assert asked[FPS] == 60.0
    assert asked[cv2.CAP_PROP_FOURCC] == cv2.VideoWriter.fourcc(*"MJPG")
    assert source.notes == [f"{source.name}: gives 6x4 instead of 1280x720"]
    source.close()
    small = open_source("0", input_size=(W, H))
    assert cv2.CAP_PROP_FOURCC not in camera.last.asked
    assert not small.notes
    small.close()


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan"), 1e9])
def test_a_rate_that_is_none(camera: type[Camera], fps: float) -> None:
    camera.fps = fps
    source = open_source("0")
    assert source.rate is None
    source.close()


def test_close_wakes_a_read(camera: type[Camera]) -> None:
    camera.stalled.clear()
    with nothing_left():
        source = open_source("0")
        thread, result = in_thread(lambda: drain(source))
        time.sleep(0.1)
        assert thread.is_alive()
        closing, _ = in_thread(source.close)
        assert ended(thread)
        assert len(result[0]) >= 1
        camera.stalled.set()  # only now the driver gives up
        assert ended(closing)
        assert camera.last.released


def test_absent(camera: type[Camera], tmp_path: Path) -> None:
    with pytest.raises(SourceLostError, match=f"there is {tmp_path}/video0; plug it in"):
        open_source("7")
    (tmp_path / "video0").unlink()
    with pytest.raises(SourceLostError, match="there is no camera at all"):
        open_source("0")


def test_not_to_be_opened(camera: type[Camera], monkeypatch: pytest.MonkeyPatch) -> None:
    camera.opens = False
    with pytest.raises(SourceLostError, match="another program"):
        open_source("0")
    assert camera.last.released
    camera.opens = True
    with pytest.raises(InputError, match="more than 10 pixels"):
        open_source("0", max_pixels=10)
    assert camera.last.released
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(InputError, match="usermod -aG video") as e:
        open_source("0")
    assert not isinstance(e.value, SourceLostError)
