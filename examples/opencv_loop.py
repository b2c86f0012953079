"""A loop of one's own around OpenCV: camera or file in, restored frames out.

    python opencv_loop.py 0              # the first camera; q ends it
    python opencv_loop.py clip.mp4 out.mkv

The window needs `opencv-python`; the headless build, which fastrestore brings, writes files only.
"""

import sys

import cv2

import fastrestore as fr


def main(source: str, target: str | None = None) -> int:
    """Restore `source` frame by frame; return how many frames there were."""
    camera = cv2.VideoCapture(int(source) if source.isdigit() else source)
    if not camera.isOpened():
        sys.exit(f"{source}: cannot be opened; give a camera's number or a file")
    writer, frames = None, 0
    with fr.Restorer("nano") as restore:
        while True:
            found, bgr = camera.read()
            if not found:
                break
            # "auto": the noise of every frame is estimated; the past of the video helps.
            rgb = restore.frame(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), sigma="auto")
            bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
            frames += 1
            if target is None:
                cv2.imshow("fastrestore", bgr)
                if cv2.waitKey(1) == ord("q"):
                    break
                continue
            if writer is None:
                rate = camera.get(cv2.CAP_PROP_FPS) or 25
                codec = cv2.VideoWriter.fourcc(*"MJPG")
                writer = cv2.VideoWriter(target, codec, rate, bgr.shape[1::-1])
            writer.write(bgr)
    camera.release()
    if writer is not None:
        writer.release()
    return frames


if __name__ == "__main__":
    print(main(*sys.argv[1:3]), "frames")
