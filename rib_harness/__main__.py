"""`python -m rib_harness` is `rib-harness`."""

from rib_harness.cli import main

if __name__ == "__main__":
    main()
