"""Turn the answers of frozen models into an advantage (`sampled`, `iw_opd`), a loss (`exact`) or either (the others).

One file each. `composed_teacher.py` multiplies several frozen models; `exopd`, `delta` and `veto` are cases of it.
`signal.py` defines a signal, `signal_registry.py` finds one by its type, `in_verl/` runs it.
"""
