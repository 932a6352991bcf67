"""Try whether transformers would write a model's generation settings, which verl does with every checkpoint.

    python -m verl_s2d.sampling.generation_settings < directories.json

Reads {role: directory} and prints `S2D {role: reason or null}`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from verl_s2d.errors import UserError
from verl_s2d.platforms.subprocess_query import answering


def refusal(directory: str) -> str | None:
    """Return the reason why transformers would not write generation_config.json; None if it would.

    Without that file transformers makes one of config.json.
    """
    from transformers import GenerationConfig, PretrainedConfig

    if not (Path(directory) / "config.json").is_file():
        return None
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


def require_writable(model: str, key: str) -> None:
    """Raise UserError if no checkpoint of the model in this directory could be written; others are not tried."""
    directory = Path(model).expanduser()
    if directory.is_dir() and (reason := refusal(str(directory))) is not None:
        raise unwritable(key, str(directory), reason)


def unwritable(key: str, model: str, reason: str) -> UserError:
    """Make the error for generation settings that transformers reads and refuses to write."""
    return UserError(
        f"transformers reads the model's generation settings, and refuses to write them with a checkpoint: {reason}",
        key=key,
        value=model,
        remedy="Correct a copy of the model: set do_sample to true in it, or remove the keys named above.",
    )


def main() -> None:
    """Answer the question on standard input."""
    answer = answering()
    answer({role: refusal(directory) for role, directory in json.load(sys.stdin).items()})


if __name__ == "__main__":
    main()
