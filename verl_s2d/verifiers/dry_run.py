"""Check that a verifier scores a problem without raising.

    python -m verl_s2d.verifiers.dry_run < question.json

Reads {verifier, problem: {data_source, ground_truth, extra_info}} from standard input, and scores an empty response and
the ground truth itself. The last line of output is `S2D {"problem": null or the error's text}`.
"""

from __future__ import annotations

import json
import sys

from verl_s2d.errors import UserError
from verl_s2d.verifiers.registry import check


def main() -> None:
    question = json.load(sys.stdin)
    problem = question["problem"]
    try:
        for response in ("", str(problem["ground_truth"])):
            check(question["verifier"], problem, response)
        told = None
    except UserError as error:
        told = error.problem
    print(f"\nS2D {json.dumps({'problem': told})}", flush=True)


if __name__ == "__main__":
    main()
