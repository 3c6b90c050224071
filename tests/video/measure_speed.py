"""Seconds that PyAV and decord take for the same frames, side by side: `python -m tests.video.measure_speed FILE...`."""

from __future__ import annotations

import os
import statistics
import sys
import time

from minirlaif.video.frame_sampling import FrameSize, uniform_plan
from minirlaif.video.reader import ClipReader

REPEATS, FRAMES, SIZE = 5, 16, FrameSize(224, 224)


def main() -> None:
    with ClipReader(600, decoder="av") as av, ClipReader(600, decoder="decord") as decord:
        print("| clip | PyAV | decord |\n| --- | --- | --- |")
        for path in sys.argv[1:]:
            seconds: dict[str, list[float]] = {"av": [], "decord": []}
            length = av.info(path).seconds
            assert decord.info(path).reader == "decord", f"{path}: decord does not read this kind"
            for number in range(REPEATS):
                order = (("av", av), ("decord", decord))
                for name, reader in order[:: -1 if number % 2 else 1]:
                    os.utime(path)  # so that the timeline is made again
                    started = time.perf_counter()
                    reader.frames(path, [uniform_plan(length, FRAMES)], SIZE)
                    seconds[name].append(time.perf_counter() - started)
            medians = {name: statistics.median(times) for name, times in seconds.items()}
            print(f"| {os.path.basename(path)} | {medians['av']:.3f} | {medians['decord']:.3f} |", flush=True)


if __name__ == "__main__":
    main()
