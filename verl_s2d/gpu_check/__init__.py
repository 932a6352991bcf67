"""Run `verl-s2d gpu-check`: test and time on this machine everything that a recipe needs.

part_registry.py lists the parts, parts/ has one file each, part_runner.py runs each part in its own process.
"""
