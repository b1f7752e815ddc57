"""Metrics: functions of the scores of one checkpoint on one dataset, or of a whole matrix."""
