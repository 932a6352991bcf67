"""Read facts from model directories and check that two models fit together, without torch or transformers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from verl_s2d.errors import UserError

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
        key: the setting that names the model, for messages.
        vocabulary: rows of the embedding.
        context: longest sequence in tokens, None if the configuration does not give it.
        eos: ids that end a sequence.
    """

    role: str
    key: str
    directory: Path
    vocabulary: int
    context: int | None
    eos: frozenset[int]
    chat_template: str | None

    @cached_property
    def tokens(self) -> dict[int, str]:
        """Read the tokenizer: token id -> token, added tokens included."""
        from tokenizers import Tokenizer

        path = self.directory / "tokenizer.json"
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise UserError(
                f"The tokenizer cannot be read: {error}.",
                key=self.key,
                value=str(path),
                remedy="It needs a tokenizer.json.",
            ) from error
        return {i: token for token, i in tokenizer.get_vocab(with_added_tokens=True).items()}


def read_model(directory: Path, role: str, key: str | None = None) -> ModelFacts:
    """Read the facts of the model in a directory; `key` is the setting that names it, by default its role.

    Raises:
        UserError: config.json is unreadable or has no vocab_size.
    """
    key = key or role
    try:
        config = json.loads((directory / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"The model cannot be read: {error}.", key=key, value=str(directory), remedy="Check its config.json."
        ) from error
    text = config.get("text_config") or config
    if not isinstance(text.get("vocab_size"), int):
        raise UserError("The model's config.json has no vocab_size.", key=key, value=str(directory), remedy="Check it.")
    generation = _json(directory / "generation_config.json")
    tokenizer = _json(directory / "tokenizer_config.json")
    template = directory / "chat_template.jinja"
    return ModelFacts(
        role=role,
        key=key,
        directory=directory,
        vocabulary=text["vocab_size"],
        context=text.get("max_position_embeddings"),
        eos=_ids(generation.get("eos_token_id", config.get("eos_token_id"))),
        chat_template=template.read_text() if template.is_file() else tokenizer.get("chat_template"),
    )


def hub_files(name: str, revision: str | None, key: str) -> Path:
    """Return a directory with a hub model's configuration and tokenizer, from the cache or the network.

    Raises:
        UserError: the hub does not have the model or is unreachable.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    directory = None
    for file in _SMALL_FILES:
        try:
            found = hf_hub_download(name, file, revision=revision, etag_timeout=10)
        except Exception as error:  # network, permission and validation errors have no common base
            # The repository lacks the file. An unreachable hub raises a subclass of the same error.
            if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
                continue
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(
                f"The model is neither a directory nor readable from the hub: {reason}",
                key=key,
                value=name,
                remedy="Check the name, the network and your access to it, or give a local directory.",
            ) from error
        directory = directory or Path(found).parent
    if directory is None:
        raise UserError("The hub repository is not a model.", key=key, value=name, remedy="Check the name.")
    return directory


def check_pair(student: ModelFacts, teacher: ModelFacts) -> None:
    """Raise UserError unless both tokenizers are equal and both vocabularies cover every token id."""
    if student.tokens != teacher.tokens:
        first = min(
            i for i in student.tokens.keys() | teacher.tokens.keys() if student.tokens.get(i) != teacher.tokens.get(i)
        )
        raise UserError(
            f"The tokenizers differ, first at id {first}: {student.tokens.get(first)!r} for the student, "
            f"{teacher.tokens.get(first)!r} for the teacher.",
            key=teacher.key,
            value=str(teacher.directory),
            remedy="Distillation compares token by token: choose models that share a tokenizer.",
        )
    highest = max(student.tokens)
    for model in (teacher, student):
        if model.vocabulary <= highest:
            raise UserError(
                f"The vocabulary of the {model.role} has {model.vocabulary} entries, "
                f"but token ids up to {highest} are in use.",
                key=model.key,
                value=str(model.directory),
                remedy="Use a model whose embedding covers its tokenizer.",
            )


def differences(student: ModelFacts, teacher: ModelFacts) -> list[str]:
    """List the allowed differences: end-of-sequence ids, chat template, padded vocabulary."""
    found = []
    if student.eos != teacher.eos:
        found.append(f"end-of-sequence ids differ: student {sorted(student.eos)}, teacher {sorted(teacher.eos)}")
    if student.chat_template != teacher.chat_template:
        found.append("chat templates differ: prompts are rendered with the template of the model that generates")
    if student.vocabulary != teacher.vocabulary:
        found.append(f"vocabularies are padded differently: student {student.vocabulary}, teacher {teacher.vocabulary}")
    return found


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
