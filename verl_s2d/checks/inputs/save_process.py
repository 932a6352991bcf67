"""Write models' generation_config.json as a checkpoint does, in a process of its own: it imports transformers.

    python -m verl_s2d.checks.inputs.save_process < directories.json

Reads {role: directory} and prints `S2D {role: reason or null}`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path


def refusal(directory: str) -> str | None:
    """Return the reason why transformers would not write the file again; None if it would."""
    from transformers import GenerationConfig

    try:
        given = json.loads((Path(directory) / "generation_config.json").read_text())
        with tempfile.TemporaryDirectory() as out:
            GenerationConfig.from_dict(given).save_pretrained(out)
    except Exception as error:  # what a file may hold is the user's
        return " ".join(str(error).split()) or type(error).__name__
    return None


def main() -> None:
    """Answer the question on standard input."""
    found = {role: refusal(directory) for role, directory in json.load(sys.stdin).items()}
    print(f"\nS2D {json.dumps(found)}")


if __name__ == "__main__":
    main()
