"""Turn the answers of frozen models into an advantage (`sampled`), a loss (`exact`) or either (`exopd`): one file each.

`signal.py` says what a signal is, `signal_registry.py` finds one by its type, `in_verl/` runs it.
"""
