"""Compare the tokens of a frozen model and the student of a verl command, before any worker starts."""

from __future__ import annotations

import os
from pathlib import Path

from verl_s2d.data.model_files import check_pair, differences, hub_files, read_model
from verl_s2d.data.weights import check_weights
from verl_s2d.errors import UserError


def check_tokens(
    student: str, teacher: str, *, student_key: str, teacher_key: str, revision: str | None = None
) -> list[str]:
    """Compare the tokenizers id by id, and the vocabularies with them; return harmless differences.

    Args:
        student, teacher: checkpoint directories or hub ids. Remote storage such as `hdfs://` is not compared: only verl
            can read it.
        student_key, teacher_key: the settings that name them, for messages.
        revision: revision of a teacher on the hub; null: its main branch.

    Raises:
        UserError: a model that cannot be read, tokenizers that differ, or a vocabulary smaller than the ids in use.
    """
    if "://" in student or "://" in teacher:
        return []
    facts = []
    for path, version, role, key in (
        (student, None, "student", student_key),
        (teacher, revision, "teacher", teacher_key),
    ):
        check_weights(os.path.expanduser(path), key, revision=version)
        facts.append(read_model(_directory(path, version, key), role, key))
    check_pair(*facts)
    return differences(*facts)


def check_served(model: str, *, key: str, longest: int, top_k: int) -> None:
    """Check what servers would refuse only once they load the model.

    Args:
        model: checkpoint directory or hub id.
        key: the model's section, for messages.
        longest: tokens of the longest sequence, prompt and response.
        top_k: likely tokens to answer with.

    Raises:
        UserError: the model's context has no room for the token that a server samples after each sequence, or the model
            has fewer tokens than top_k.
    """
    if "://" in model:
        return
    facts = read_model(_directory(model, None, f"{key}.path"), "teacher", f"{key}.path")
    if facts.context is not None and longest + 1 > facts.context:
        raise UserError(
            f"a server samples one token after each sequence, and the model's context of {facts.context} tokens has no "
            f"room for it after {longest}",
            key=f"{key}.placement",
            value="server",
            remedy=f"shorten data.max_response_length by {longest + 1 - facts.context}, or use placement colocated",
        )
    if top_k > facts.vocabulary:
        raise UserError(
            f"the model has {facts.vocabulary} tokens", key="s2d.signal.k", value=top_k, remedy="ask for fewer"
        )


def real_vocabulary(tokenizer, *configurations) -> int:
    """Count the ids that are tokens of every model: embedding rows beyond the tokenizer are padding.

    Args:
        tokenizer: a transformers tokenizer.
        configurations: the models' transformers configurations.
    """
    texts = [c.get_text_config() if hasattr(c, "get_text_config") else c for c in configurations]
    return min(max(tokenizer.get_vocab().values()) + 1, *(text.vocab_size for text in texts))


def _directory(path: str, revision: str | None, key: str) -> Path:
    local = Path(os.path.expanduser(path))
    return local if local.is_dir() or local.is_absolute() else hub_files(path, revision, key)
