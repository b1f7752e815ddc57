"""Time and memory of each method against ft, on a ViT at 224 pixels.

A timm vit_tiny_patch16_224 with random weights, 32 random pictures, two epochs in batches of 16;
each method in a process of its own, after one small step of ft that loads what torch loads late.
Time is CPU time of all threads. Memory is what the process needs at its peak beyond what it needed
before, with the checkpoints that the method starts from already made: an average's own cost is
without its members'.

    python benchmarks/method_costs.py            # all methods
    python benchmarks/method_costs.py lora ewc   # some
"""

import json
import resource
import subprocess
import sys
import time

import numpy as np

#: Methods whose checkpoints are others': their own cost, without that of their members.
OPTIONS = {"si": "old=old", "best-of": "members=ft+lwf"}
TEXT = ("flyp", "carot", "lipsum-ft")
N, CLASSES, SIZE = 32, 10, 224


def images(seed: int):
    from PIL import Image

    from rib_harness import ImageSet

    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 256, (N, SIZE, SIZE, 3), dtype=np.uint8)
    return ImageSet(
        labels=np.arange(N) % CLASSES,
        classes=tuple(map(str, range(CLASSES))),
        class_map=tuple((i,) for i in range(CLASSES)),
        read=lambda i: Image.fromarray(pictures[i]),
        names=[str(i) for i in range(N)],
        source=np.arange(N).astype(str),
        group=np.full(N, ""),
        fingerprint="benchmark",
    )


def measure(reference: str) -> dict[str, float]:
    """In this process: ft and the method, on the same data."""
    import timm
    import torch

    from rib_harness import Classifier, Preprocess, load_catalog, members_of
    from rib_harness.config import Recipe
    from rib_harness.engine.data import Pixels
    from rib_harness.engine.device import make_accelerator
    from rib_harness.engine.task import Task

    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    preprocess = Preprocess(size=SIZE)
    pretrained = Classifier(model, torch.nn.Linear(192, CLASSES), preprocess).eval()
    catalog = load_catalog()
    bound = catalog.bind("method", reference)

    def names(field: str) -> list[str]:
        texts = [text.format_map(bound.options) for text in getattr(bound.spec, field)]
        return [
            one
            for text in texts
            for one in members_of(text.removeprefix("*"))
            if one != "pretrained"
        ]

    pixels, old = (Pixels(images(seed), preprocess, pack=False) for seed in (0, 1))
    task = Task(
        pretrained=pretrained,
        pixels=pixels,
        held=old,
        datasets={"old": old},
        recipe=Recipe(epochs=2, batch_size=16, lr=1e-3),
        seed=0,
        accelerator=make_accelerator("cpu"),
        checkpoints={name: pretrained.copy() for name in names("needs")},
        methods={name: catalog.bind("method", name).build() for name in names("calls")},
    )
    ft = catalog.bind("method", "ft").build()
    if reference == "ft":
        return timed(ft, task)
    warm = Recipe(epochs=1, max_steps=1, batch_size=2)
    ft.finetune(Task(**{**vars_of(task), "recipe": warm}))
    return timed(bound.build(), task)


def vars_of(task) -> dict:
    from dataclasses import fields

    return {
        f.name: getattr(task, f.name) for f in fields(task) if f.name not in ("stages", "facts")
    }


def timed(method, task) -> dict[str, float]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.process_time()
    method.finetune(task)
    seconds = time.process_time() - begun
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "mib": (after - before) / 1024}


def child(reference: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, "--child", reference], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    from rib_harness import load_catalog

    offered = [c.spec.name for c in load_catalog().list("method") if c.plugin.name == "cl-methods"]
    wanted = sys.argv[1:] or [name for name in sorted(offered) if name not in TEXT]
    ft = child("ft")
    print(f"ft: {ft['seconds']:.1f} s, {ft['mib']:.0f} MiB; all else as a multiple of it\n")
    print("| method | time | memory |\n|---|---:|---:|")
    for name in wanted:
        found = child(f"{name}:{OPTIONS[name]}" if name in OPTIONS else name)
        time_ratio, memory = found["seconds"] / ft["seconds"], found["mib"] / ft["mib"]
        print(f"| {name} | {time_ratio:.2f} | {memory:.2f} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(measure(sys.argv[2])))
    else:
        main()
