"""Verifiers, and the wrapper that enters every verifier call in the ledger of a stage.

A verifier has verl's signature `compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs)` and
returns a float, or a dict with `score` and, where it differs, `acc`.
"""
