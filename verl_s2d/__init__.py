"""Sparse-to-dense post-training on verl: teacher RL, forward-KL warmup, on-policy distillation, student RL."""

__version__ = "0.1.0"
