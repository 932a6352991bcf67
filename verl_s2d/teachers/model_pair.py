"""Compare the tokens of a frozen model and the student of a verl command, before any worker starts."""

from __future__ import annotations

import os
from pathlib import Path

from verl_s2d.data.model_files import check_pair, differences, hub_files, read_model
from verl_s2d.data.weights import check_weights


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
