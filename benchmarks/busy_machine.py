"""`run --method lwf` on digits by how threads wait, on a quiet machine and beside a busy process.

The baseline is torch's own default, in the same state of the machine. CPU seconds are those of the
whole process: threads that spin take them from others.

    python benchmarks/busy_machine.py [REPETITIONS]
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

ARGUMENTS = ["run", "--method", "lwf", "-d", "digits-a", "-d", "digits-r", "--limit", "20",
             "--set", "recipe.epochs=3"]  # fmt: skip

#: What is compared: its name, variables and options. The variable is one of another OpenMP: torch's
#: own spins, and rib-harness leaves that where a user has set something.
WAYS: dict[str, tuple[dict[str, str], list[str]]] = {
    "torch's default": ({"KMP_BLOCKTIME": "200"}, ["--threads", "all"]),
    "all, passive": ({}, ["--threads", "all"]),
    "rib-harness": ({}, []),
}


def measured(variables: dict[str, str], options: list[str]) -> tuple[float, float]:
    """Seconds of wall and of CPU time."""
    code = "from rib_harness.cli import main; main()"
    options = [str(os.cpu_count()) if one == "all" else one for one in options]
    with tempfile.TemporaryDirectory() as store:
        begun, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-c", code, *ARGUMENTS, *options, "--store", store],
            env={**os.environ, **variables}, check=True, capture_output=True,
        )  # fmt: skip
        wall, now = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime


def main(repetitions: int = 3) -> None:
    os.environ.pop("OMP_NUM_THREADS", None)
    for state in ("quiet", "busy"):
        busy = None
        if state == "busy":
            busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        try:
            # In turns, so that what else the machine does is shared.
            runs = [
                {name: measured(*way) for name, way in WAYS.items()} for _ in range(repetitions)
            ]
        finally:
            if busy is not None:
                busy.kill()
        base = [statistics.median(run["torch's default"][i] for run in runs) for i in (0, 1)]
        for name in WAYS:
            wall, cpu = (statistics.median(run[name][i] for run in runs) for i in (0, 1))
            print(f"{state:6s} {name:16s} {wall:6.1f} s {wall / base[0]:5.2f}"
                  f"   {cpu:6.1f} CPU s {cpu / base[1]:5.2f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
