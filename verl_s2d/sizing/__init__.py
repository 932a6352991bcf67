"""Estimate a plan's parallel layouts, memory per GPU, tokens and FLOPs, from settings and model shapes alone.

Bytes and FLOPs are closed forms; each module gives its formulas and their sources. No weights, GPU or torch needed.
"""
