"""The end of the process: nothing that a plugin has left at work keeps it."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress

#: Seconds that it may take, once all results are out and on disk.
PATIENCE = 3.0


def end_soon(code: int) -> None:
    """End with this exit code, at the latest in a few seconds.

    Python waits at its end for threads, and `multiprocessing` for children.
    """
    threading.Thread(target=_end, args=(code,), daemon=True).start()


def _end(code: int) -> None:
    time.sleep(PATIENCE)
    main = threading.main_thread()
    left = [t.name for t in threading.enumerate() if t is not main and not t.daemon]
    what = f"of the thread {', '.join(left)}" if left else "of what a plugin has left at work"
    with suppress(OSError):
        os.write(2, f"Ended without waiting for the end {what}.\n".encode())
    os._exit(code)
