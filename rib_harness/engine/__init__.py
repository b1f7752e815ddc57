"""Everything that touches torch."""

from rib_harness.threads import wait_passively

wait_passively()
