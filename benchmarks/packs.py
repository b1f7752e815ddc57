"""What the checksums of decoded pictures cost: a pass over a pack against a pass over a plain map.

Baseline: the same file through NumPy's map, in the same process.

    python benchmarks/packs.py [--images 2000]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from PIL import Image

from rib_harness import Preprocess, cache_dir
from rib_harness.engine.data import Pixels, epoch_order
from rib_harness.testing import tiny_images


def seconds(batches: Iterable[object]) -> float:
    begun = time.perf_counter()
    for _ in batches:
        pass
    return time.perf_counter() - begun


def measure(side: int, n: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    images = replace(tiny_images(n), read=lambda index: picture)
    orders = [epoch_order(n, 32, [seed]) for seed in range(6)]
    Pixels(images, Preprocess(size=side), pack=True)
    (file,) = cache_dir("packs").glob("*.npy")
    plain, pixels = np.load(file, mmap_mode="r"), Pixels(images, Preprocess(size=side), pack=True)
    base = [seconds(plain[rows] for rows in order) for order in orders]
    ours = [seconds(pixels.batches(order)) for order in orders]
    print(
        f"{side} pixels: first pass {ours[0] / base[0]:5.2f}, later ones "
        f"{min(ours[1:]) / min(base[1:]):5.2f} x a plain map's (of {1e6 * base[0] / n:.1f} and "
        f"{1e6 * min(base[1:]) / n:.1f} microseconds a picture)"
    )
    file.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000)
    n = parser.parse_args().images
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["RIB_CACHE"] = scratch
        for side in (224, 16):
            measure(side, n)


if __name__ == "__main__":
    main()
