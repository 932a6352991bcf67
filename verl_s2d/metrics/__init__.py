"""Describe and read the numbers that stages log, and detect failures in them.

`metric_table.py` is what a stage says of its metrics, `metric_logs.py` reads them, `detectors.py` finds faults in them.
"""
