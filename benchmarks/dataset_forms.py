"""A folder of 50 000 files is indexed in seconds; a tar read in place is no slower than a folder.

Baselines, in the same run: Python's own walk of the same tree, torchvision's ImageFolder, and
reading the same files by their paths. Files of about 12 kB of random bytes, as C's JPEGs are.

    python benchmarks/dataset_forms.py [--files 50000]
"""

from __future__ import annotations

import argparse
import os
import random
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rib_plugin_imagenet_ood.classes import imagenet_classes
from rib_plugin_imagenet_ood.datasets import ImageNet
from torchvision.datasets import ImageFolder

from rib_harness.files.members import Members


def timed(label: str, work: Callable[[], object], baseline: float | None = None) -> float:
    begun = time.perf_counter()
    work()
    seconds = time.perf_counter() - begun
    ratio = f"   {seconds / baseline:6.2f} × baseline" if baseline else ""
    print(f"{label:58} {seconds:8.3f} s{ratio}")
    return seconds


def make(root: Path, files: int) -> None:
    rng = random.Random(0)
    wnids = [c.wnid for c in imagenet_classes()]
    for i in range(files):
        folder = root / wnids[i % 1000]
        if i < 1000:
            folder.mkdir(parents=True)
        name = f"ILSVRC2012_val_{i + 1:08}.JPEG"
        (folder / name).write_bytes(rng.randbytes(rng.randint(6000, 18000)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=50_000)
    files = parser.parse_args().files
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["RIB_CACHE"] = f"{scratch}/cache"
        root = Path(scratch, "data/imagenet/val")
        make(root, files)
        tar = Path(scratch, "val.tar")
        with tarfile.open(tar, "w") as opened:
            opened.add(root, arcname="val")
        data = Path(scratch, "data")

        print(f"Indexing {files:,} files in 1000 folders")
        walk = timed("baseline: os.walk with a stat of each file", lambda: [
            Path(folder, name).stat() for folder, _, names in os.walk(root) for name in names
        ])  # fmt: skip
        timed("torchvision ImageFolder (labels only)", lambda: ImageFolder(str(root)), walk)
        timed("first open: scan, read and hash all, write the index",
              lambda: ImageNet().open(data), walk)  # fmt: skip
        timed("second open: scan, compare with the index", lambda: ImageNet().open(data), walk)
        timed("tar, first open", lambda: ImageNet(at=str(tar)).open(None), walk)
        timed("tar, second open (the index alone)", lambda: ImageNet(at=str(tar)).open(None), walk)

        print("\nReading all files once, in one random order, from a warm page cache")
        inside, below = Members([tar]), Members([root])
        order = list(range(files))
        random.Random(1).shuffle(order)
        paths = [root / name for name in below.names]
        where = {name.split("/", 1)[1]: i for i, name in enumerate(inside.names)}
        in_tar = [where[name] for name in below.names]
        for repeat in (1, 2, 3):
            print(f"  repeat {repeat}")
            folder = timed("  baseline: open and read by path", lambda: [
                paths[i].read_bytes() for i in order
            ])  # fmt: skip
            timed("  folder, through Members", lambda: [below.read(i) for i in order], folder)
            timed("  indexed tar, through Members", lambda: [inside.read(in_tar[i]) for i in order],
                  folder)  # fmt: skip
        same = all(inside.read(in_tar[i]) == below.read(i) for i in order[:200])
        print(f"\nSame bytes: {same}")


if __name__ == "__main__":
    main()
