"""Refuse recipes, data and models that a later stage would refuse. Nothing here imports torch."""
