"""Tokens whose logits exist at a time where nobody chose: objectives work with these, `plan` counts their memory.

Large products run at full speed, small chunks stay in a CPU's caches: its number was the fastest there of
benchmarks/divergence.py.
"""

ON_CPU = 256
ON_ACCELERATOR = 512
