"""A run log: one JSON line for every event."""
