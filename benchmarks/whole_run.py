"""`run --method lwf` on digits from nothing: wall time and largest memory of the whole process.

The baseline is the same command again, which finds every step done.

    python benchmarks/whole_run.py
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil


def measured(folder: Path) -> tuple[float, float]:
    """Seconds and GiB of resident memory, summed over the process and its children."""
    code = "from rib_harness.cli import main; main()"
    arguments = ["run", "--method", "lwf", "--store", str(folder / "store")]
    environment = {**os.environ, "RIB_CACHE": str(folder / "cache")}
    begun, peak = time.perf_counter(), 0
    with (folder / "log").open("ab") as log:
        child = subprocess.Popen([sys.executable, "-c", code, *arguments], env=environment,
                                 stdout=log, stderr=log)  # fmt: skip
        process = psutil.Process(child.pid)
        while child.poll() is None:
            try:
                tree = [process, *process.children(recursive=True)]
                peak = max(peak, sum(p.memory_info().rss for p in tree))
            except psutil.NoSuchProcess:
                break
            time.sleep(0.05)
    if child.wait():
        sys.exit((folder / "log").read_text())
    return time.perf_counter() - begun, peak / 2**30


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        first, second = measured(Path(name)), measured(Path(name))
    print(f"again         {second[0]:6.1f} s   {second[1]:.2f} GiB   1.0")
    print(f"from nothing  {first[0]:6.1f} s   {first[1]:.2f} GiB   {first[0] / second[0]:.1f}")


if __name__ == "__main__":
    main()
