"""Turn the answers of frozen models into an advantage (`sampled`), a loss (`exact`) or either (`exopd`): one file each.

`signal.py` defines a signal, `signal_registry.py` finds one by its type, `in_verl/` runs it.
"""
