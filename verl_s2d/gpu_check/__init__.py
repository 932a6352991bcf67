"""`verl-s2d gpu-check`: does everything that a recipe needs work on this machine, and how fast.

registry.py lists the parts, parts/ has one file each, runner.py runs each of them in a process of its own.
"""
