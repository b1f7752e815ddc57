"""A plugin for `tests/faults`: a tiny suite, and parts that misbehave when they are told to."""
