"""Score responses with verifiers, and record every call in a stage's ledger.

A verifier has verl's signature `compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs)`,
plain or `async`. It returns a number, a mapping with `score` and, if it differs, `acc`, or a `Score` (score.py). A
response that exceeds a limit is wrong. Where the verifier could not judge, as a service is down, it raises `Unscored`.
"""
