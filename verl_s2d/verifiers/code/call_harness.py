"""Run a program's function, or expressions after it, and write the values: the code verifier sends this into boxes.

Standard input: {"source", "function", "arguments" (a Python literal), "expressions", "statements", "mark"} as JSON.
Standard output: the mark and the values as a Python literal. What is no plain value is written as `...`.
"""

import ast
import io
import json
import math
import numbers
import os
import sys
import types

_IMPORTED = ("string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "itertools")
_IMPORTED += ("functools", "typing")


def plain(value, depth=0):
    """Rebuild a value from built-in types, so that no class of the program decides what equals it."""
    if depth > 100:
        return ...
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else ...
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bytes):
        return bytes(value)
    if isinstance(value, dict):
        return {plain(key, depth + 1): plain(item, depth + 1) for key, item in dict.items(value)}
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            members = [plain(item, depth + 1) for item in kind.__iter__(value)]
            return {*members} if kind in (set, frozenset) else kind(members)
    return ...


def main():
    asked = json.load(sys.stdin)
    result = os.dup(1)
    os.dup2(2, 1)
    sys.stdin = io.StringIO("")
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    for name in _IMPORTED:
        exec(f"from {name} import *\nimport {name}", module.__dict__)
    exec(compile(asked["source"], "solution.py", "exec"), module.__dict__)
    if asked["function"]:
        found = module.__dict__.get(asked["function"])
        if found is None:
            found = getattr(module.Solution(), asked["function"])
        values = [plain(found(*ast.literal_eval(asked["arguments"])))]
    else:
        values = [plain(eval(text, module.__dict__)) for text in asked["expressions"]]
    exec(compile(asked["statements"], "tests.py", "exec"), module.__dict__)
    os.write(result, (asked["mark"] + repr(values)).encode())


main()
