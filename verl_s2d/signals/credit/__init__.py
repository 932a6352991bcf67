"""Let a frozen teacher say which tokens of a rollout earn GRPO's advantage: stage 3 with credit.

One file each: `rlsd` and `rlrt` weigh the advantage, `trrd` moves the anchor of the policy ratio, `kdrl` adds a
distillation term to the loss. `credit.py` defines a credit, `credit_registry.py` finds one by its type.
"""
