"""What a model directory says about itself, read without torch or transformers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from verl_s2d.errors import UserError
from verl_s2d.workflow.identity import External

_SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)


@dataclass(frozen=True)
class ModelFacts:
    """Facts of one model.

    Attributes:
        role: `student` or `teacher`, for messages.
        vocabulary: rows of the embedding.
        context: longest sequence in tokens, None when the configuration does not say.
        eos: ids that end a sequence.
    """

    role: str
    directory: Path
    vocabulary: int
    context: int | None
    eos: frozenset[int]
    chat_template: str | None

    @cached_property
    def tokens(self) -> dict[int, str]:
        """Token id -> token, added tokens included."""
        from tokenizers import Tokenizer

        path = self.directory / "tokenizer.json"
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise UserError(
                f"The tokenizer cannot be read: {error}.",
                key=self.role,
                value=str(path),
                remedy="It needs a tokenizer.json.",
            ) from error
        return {i: token for token, i in tokenizer.get_vocab(with_added_tokens=True).items()}


def read_model(directory: Path, role: str) -> ModelFacts:
    """Facts of the model in a directory.

    Raises:
        UserError: its config.json cannot be read or does not give a vocabulary.
    """
    try:
        config = json.loads((directory / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"The model cannot be read: {error}.", key=role, value=str(directory), remedy="Check its config.json."
        ) from error
    text = config.get("text_config") or config
    if not isinstance(text.get("vocab_size"), int):
        raise UserError(
            "The model's config.json has no vocab_size.", key=role, value=str(directory), remedy="Check it."
        )
    generation = _json(directory / "generation_config.json")
    tokenizer = _json(directory / "tokenizer_config.json")
    template = directory / "chat_template.jinja"
    return ModelFacts(
        role=role,
        directory=directory,
        vocabulary=text["vocab_size"],
        context=text.get("max_position_embeddings"),
        eos=_ids(generation.get("eos_token_id", config.get("eos_token_id"))),
        chat_template=template.read_text() if template.is_file() else tokenizer.get("chat_template"),
    )


def hub_files(model: External) -> Path:
    """Directory with the configuration and tokenizer of a hub model, from its cache or fetched now.

    Raises:
        UserError: the hub does not have it or cannot be reached.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    directory = None
    for name in _SMALL_FILES:
        try:
            found = hf_hub_download(model.location, name, revision=model.revision, etag_timeout=10)
        except EntryNotFoundError:
            continue
        except Exception as error:  # network, permission and validation errors have no common base
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(
                f"The model is neither a directory nor readable from the hub: {reason}",
                key=model.key,
                value=model.location,
                remedy="Check the name, the network and your access to it, or give a local directory.",
            ) from error
        directory = directory or Path(found).parent
    if directory is None:
        raise UserError(
            "The hub repository is not a model.", key=model.key, value=model.location, remedy="Check the name."
        )
    return directory


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _ids(value: Any) -> frozenset[int]:
    if value is None:
        return frozenset()
    return frozenset(value if isinstance(value, list) else [value])
