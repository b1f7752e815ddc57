"""One pass over the images for K checkpoints, against K passes, each reading and decoding anew.

Random JPEG photographs of 500 × 375 pixels in memory, decoded at each pass, and small random
backbones of timm: what is saved is the decoding.

    python benchmarks/shared_pass.py
"""

import io
import time

import numpy as np
import torch
from PIL import Image

from rib_harness import ImageSet, Preprocess
from rib_harness.engine.classifier import Classifier
from rib_harness.engine.data import Pixels
from rib_harness.engine.evaluate import evaluate

N, CHECKPOINTS = 200, (1, 2, 4, 8)


def photographs() -> ImageSet:
    rng = np.random.default_rng(0)
    files = []
    for _ in range(N):
        small = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        out = io.BytesIO()
        small.resize((500, 375), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
        files.append(out.getvalue())
    return ImageSet(
        labels=rng.integers(0, 10, N),
        classes=tuple("0123456789"),
        class_map=tuple((i,) for i in range(10)),
        read=lambda i: Image.open(io.BytesIO(files[i])),
        names=[str(i) for i in range(N)],
        source=np.arange(N).astype(str),
        group=np.full(N, ""),
        fingerprint="benchmark",
    )


def classifier(seed: int, preprocess: Preprocess) -> Classifier:
    torch.manual_seed(seed)
    encoder = torch.nn.Sequential(
        torch.nn.Conv2d(3, 32, 16, 16), torch.nn.GELU(), torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
    )  # fmt: skip
    return Classifier(encoder, torch.nn.Linear(32, 10), preprocess)


def main() -> None:
    preprocess = Preprocess(size=224, resize=256)
    pixels = Pixels(photographs(), preprocess, pack=False)
    cpu = torch.device("cpu")
    for k in CHECKPOINTS:
        models = {str(i): classifier(i, preprocess) for i in range(k)}
        begun = time.perf_counter()
        for name, model in models.items():
            evaluate({name: model}, pixels, device=cpu, batch_size=32)
        separate = time.perf_counter() - begun
        begun = time.perf_counter()
        evaluate(models, pixels, device=cpu, batch_size=32)
        together = time.perf_counter() - begun
        print(f"K = {k}: {k} passes {separate:.2f} s, one pass {together:.2f} s, "
              f"{separate / together:.2f} × faster")  # fmt: skip


if __name__ == "__main__":
    main()
