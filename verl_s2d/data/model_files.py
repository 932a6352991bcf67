"""Read facts from model directories and check that two models fit together, without torch or transformers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
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
        ends: file -> the ids or the token with which it says that a sequence ends; only files that say so.
    """

    role: str
    key: str
    directory: Path
    vocabulary: int
    context: int | None
    eos: frozenset[int]
    chat_template: str | None
    ends: Mapping[str, frozenset[int] | str] = field(default_factory=dict)

    @property
    def tokens(self) -> dict[int, str]:
        """Return token id -> token, added tokens included."""
        return self._vocabularies[0]

    @property
    def added(self) -> frozenset[int]:
        """Return the ids of tokens that text yields only where it spells them out."""
        return self._vocabularies[1]

    @cached_property
    def _vocabularies(self) -> tuple[dict[int, str], frozenset[int]]:
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
        tokens = {i: token for token, i in tokenizer.get_vocab(with_added_tokens=True).items()}
        return tokens, frozenset(tokens.keys() - tokenizer.get_vocab(with_added_tokens=False).values())

    def text(self) -> str:
        """Describe the model in one line."""
        template = "with" if self.chat_template else "without"
        return (
            f"{self.directory}, {len(self.tokens)} tokens, vocabulary {self.vocabulary}, "
            f"end of sequence {sorted(self.eos)}, context {self.context}, {template} chat template"
        )

    def ids_of(self, token: str) -> frozenset[int]:
        """Return the id of a token as a set, empty when the tokenizer lacks it."""
        return frozenset(i for i, known in self.tokens.items() if known == token)


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
        ends={
            file: told
            for file, told in (
                ("tokenizer_config.json", _token(tokenizer.get("eos_token"))),
                ("config.json", _ids(config.get("eos_token_id"))),
                ("generation_config.json", _ids(generation.get("eos_token_id"))),
            )
            if told
        },
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


def cached_snapshot(name: str, revision: str) -> Path | None:
    """Locate what the hub's local cache has of a model's revision, which may be a part; None for nothing."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def check_pair(student: ModelFacts, teacher: ModelFacts) -> None:
    """Raise UserError unless both tokenizers are equal and both embeddings have the ids that text yields."""
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
    for model in (teacher, student):
        vocabulary_warnings(model)


def vocabulary_warnings(model: ModelFacts) -> list[str]:
    """Return warnings about tokens that the model cannot read, or that verl never samples.

    verl samples no id from the number of tokens on (vllm_async_server.py, `vocab_size`), which is below the largest id
    where a tokenizer's ids have holes.

    Raises:
        UserError: ordinary text may yield an id beyond the embedding, or a response could not end.
    """
    warnings = []
    beyond = {i for i in model.tokens if i >= model.vocabulary}
    if ordinary := beyond - model.added:
        raise UserError(
            f"The embedding of the {model.role} has {model.vocabulary} rows, but its tokenizer makes ids up to "
            f"{max(ordinary)} of ordinary text.",
            key=model.key,
            value=str(model.directory),
            remedy="Use a model whose embedding covers its tokenizer.",
        )
    if beyond:
        names = _names(model, beyond)
        warnings.append(f"added tokens of the {model.role} lie beyond its {model.vocabulary} embedding rows: {names}")
    never = {i for i in model.tokens if i >= len(model.tokens)} - beyond
    if model.eos and model.eos <= never:
        raise UserError(
            f"The tokenizer of the {model.role} has {len(model.tokens)} tokens and ids up to {max(model.tokens)}. verl "
            f"samples ids below the number of tokens, so no response would end ({_names(model, model.eos)}).",
            key=model.key,
            value=str(model.directory),
            remedy="Use a model whose token ids have no holes, or whose end of sequence has a smaller id.",
        )
    if never:
        names = _names(model, never)
        warnings.append(f"the ids of the {model.role}'s tokenizer have holes, and verl never samples its last: {names}")
    return warnings


def _names(model: ModelFacts, ids: Iterable[int]) -> str:
    ids = sorted(ids)
    return ", ".join(f"{model.tokens.get(i)} ({i})" for i in ids[:3]) + (", ..." if len(ids) > 3 else "")


def end_warnings(model: ModelFacts, template: str | None) -> list[str]:
    """Return a warning if no token ends a sequence for all of the model's files, and its chat template's does not stop.

    Args:
        template: the token that the template writes after a response; None if it writes none.
    """
    told = {**model.ends, **({"chat template": template} if template else {})}
    ends = [model.ids_of(end) if isinstance(end, str) else end for end in told.values()]
    if len(ends) < 2 or frozenset.intersection(*ends):
        return []
    # vLLM stops at these, so a template may end a turn with one that the tokenizer does not name, as Gemma's does.
    if template and model.ids_of(template) & model.eos:
        return []
    names = ", ".join(
        f"{source} {' '.join(f'{i} ({model.tokens.get(i)})' for i in sorted(end)) or told[source]}"
        for source, end in zip(told, ends, strict=True)
    )
    return [f"the files of the {model.role} disagree about the end of a sequence, so responses may not stop: {names}"]


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


def _token(value: Any) -> str | None:
    return value.get("content") if isinstance(value, dict) else value


def _ids(value: Any) -> frozenset[int]:
    if value is None:
        return frozenset()
    return frozenset(value if isinstance(value, list) else [value])
