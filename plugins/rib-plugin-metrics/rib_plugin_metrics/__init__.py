"""Metrics: functions of what a run keeps. No model is run again for any of them."""
