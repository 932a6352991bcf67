"""Takes vLLM's place on the path: keeps the environment in which it is imported, and the arguments of its engine."""

import os

ENVIRONMENT = dict(os.environ)


class EngineMade(Exception):
    """vLLM would start its processes now. The exception's only argument: those of the engine."""


class LLM:
    def __init__(self, **arguments):
        raise EngineMade(arguments)
