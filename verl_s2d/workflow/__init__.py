"""Build stages as a graph: plan, run, resume, hand-off, ledger. verl is only a command with overrides here.

Nothing in this package imports torch or verl.
"""
