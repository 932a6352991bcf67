"""Signals at work inside verl: the advantage estimator, and the exact loss in the calls that verl's engines make."""
