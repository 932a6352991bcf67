"""Write models' generation settings as a checkpoint does, in a process of its own: it imports transformers.

    python -m verl_s2d.checks.inputs.save_process < directories.json

Reads {role: directory} and prints `S2D {role: reason or null}`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from verl_s2d.platforms.subprocess_query import answering


def refusal(directory: str) -> str | None:
    """Return the reason why transformers would not write generation_config.json; None if it would.

    Without that file transformers makes one of config.json.
    """
    from transformers import GenerationConfig, PretrainedConfig

    try:
        file = Path(directory) / "generation_config.json"
        if file.is_file():
            settings = GenerationConfig.from_dict(json.loads(file.read_text()))
        else:
            config = json.loads((Path(directory) / "config.json").read_text())
            settings = GenerationConfig.from_model_config(PretrainedConfig.from_dict(config))
        with tempfile.TemporaryDirectory() as out:
            settings.save_pretrained(out)
    except Exception as error:  # what a file may hold is the user's
        return " ".join(str(error).split()) or type(error).__name__
    return None


def main() -> None:
    """Answer the question on standard input."""
    answer = answering()
    answer({role: refusal(directory) for role, directory in json.load(sys.stdin).items()})


if __name__ == "__main__":
    main()
