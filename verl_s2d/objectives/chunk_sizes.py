"""Define the default tokens per chunk of logits, for the objectives and for the memory that `plan` computes.

Accelerators need large products to run at full speed. On a CPU small chunks stay in the caches: this size was the
fastest in benchmarks/divergence.py.
"""

ON_CPU = 256
ON_ACCELERATOR = 512
