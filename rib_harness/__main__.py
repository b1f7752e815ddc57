"""`python -m rib_harness` is `rib-harness`."""

import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]  # the current folder, where a file may have a library's name

    from rib_harness.cli import main

    main()
