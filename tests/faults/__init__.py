"""Faults injected into real runs (verl, vLLM, Ray at tiny size), and what the same command makes of it afterwards."""
