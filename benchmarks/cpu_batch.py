"""Images a second in evaluation on this CPU, by batch size, as a ratio to batch 1.

python benchmarks/cpu_batch.py [TIMM_MODEL]
"""

import sys
import time

import timm
import torch


def main(name: str = "mobilenetv2_100") -> None:
    model = timm.create_model(name).eval()
    size = model.default_cfg["input_size"][-1]
    speeds = {}
    for batch in (1, 4, 8, 16, 32, 64, 256):
        images = torch.randn(batch, 3, size, size)
        with torch.inference_mode():
            model(images)
            begun, seen = time.perf_counter(), 0
            while time.perf_counter() - begun < 5:
                model(images)
                seen += batch
        speeds[batch] = seen / (time.perf_counter() - begun)
        ratio = speeds[batch] / speeds[1]
        print(f"batch {batch:4d}: {speeds[batch]:8.1f} images/s, {ratio:.2f} × batch 1", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
