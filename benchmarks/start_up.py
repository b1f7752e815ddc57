"""How long `rib-harness list-plugins` takes, as a ratio to importing torch.

python benchmarks/start_up.py
"""

import statistics
import subprocess
import sys
import time


def seconds(code: str, repeats: int = 7) -> float:
    """Median wall time of a fresh process; the first, which warms the disk cache, is left out."""
    times = []
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - begun)
    return statistics.median(times[1:])


def main() -> None:
    torch = seconds("import torch")
    print(f"import torch          {torch:.3f} s  1.00")
    for verb in ("--help", "list-plugins", "list methods", "show lwf", "plan --method lwf"):
        took = seconds(f"from rib_harness.cli import main; main({verb.split()!r})")
        print(f"{verb:20s}  {took:.3f} s  {took / torch:.2f}")


if __name__ == "__main__":
    main()
