"""Score responses with verifiers, and record every call in a stage's ledger.

A verifier has verl's signature `compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs)` and
returns a float, or a dict with `score` and, if it differs, `acc`.
"""
