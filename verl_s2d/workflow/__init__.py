"""Stages as a build graph: plan, run, resume, hand-off, ledger. Knows verl only as a command with overrides.

Nothing in this package imports torch or verl.
"""
