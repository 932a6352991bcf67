"""Render prompts with the chat templates of models, in a process of its own: it imports transformers.

    python -m verl_s2d.sampling.render_process FD

Reads {models: {key: {name, path, trust_remote_code}}, prompts: [messages, ...], options} as JSON from standard input
and prints `S2D {key: answer, ...}`. FD is a file descriptor for lines about the progress. An answer is {refused: text}
for a tokenizer that cannot be used, {failed: place of the prompt, reason} for a template that raises, or

    tokens  length of every prompt
    texts   digest of every rendered text
    empty   places of prompts without the text of their last message
    reads   names that the template reads and does not set
    shown   the first prompt with its special tokens in brackets
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from verl_s2d.errors import UserError
from verl_s2d.sampling.prompts import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = Sequence[Mapping[str, Any]]
_AT_ONCE = 1000
_PROGRESS_SECONDS = 2.0


class _Failed(Exception):
    """A prompt that the template cannot render: its place and the reason."""


def examine(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Messages],
    options: Mapping[str, Any],
    say: Callable[[int], None],
) -> dict[str, Any]:
    """Render all prompts with one tokenizer and measure them; `say` gets the number of prompts done."""
    answer: dict[str, Any] = {"tokens": [], "texts": [], "empty": [], "reads": _names_read(tokenizer), "shown": ""}
    for start in range(0, len(prompts), _AT_ONCE):
        chunk = prompts[start : start + _AT_ONCE]
        try:
            texts = _render(tokenizer, chunk, options, start)
        except _Failed as failure:
            place, reason = failure.args
            return {"failed": place, "reason": reason}
        # The library encodes a batch on all cores.
        answer["tokens"] += map(len, tokenizer(texts, add_special_tokens=False)["input_ids"])
        answer["texts"] += [hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16] for text in texts]
        lost = (_is_lost(tokenizer, *pair, options) for pair in zip(chunk, texts, strict=True))
        answer["empty"] += [start + i for i, is_lost in enumerate(lost) if is_lost]
        answer["shown"] = answer["shown"] or marked(tokenizer, texts[0])
        say(start + len(chunk))
    return answer


def marked(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """Decode the tokens of a text, with its special tokens in brackets."""
    special, parts, plain = tokenizer.added_tokens_decoder, [], []
    for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
        if token not in special:
            plain.append(token)
            continue
        parts += [tokenizer.decode(plain), f"[{special[token].content}]"]
        plain = []
    return "".join([*parts, tokenizer.decode(plain)])


def _render(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Messages], options: Mapping[str, Any], first: int
) -> list[str]:
    """Render prompts to text. Raises _Failed with the place of the first that cannot be."""

    def render(messages: Any) -> Any:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)

    try:
        return render(list(map(list, prompts)))
    except Exception as error:  # a template may raise anything
        for place, messages in enumerate(prompts, first):
            try:
                render(list(messages))
            except Exception as cause:
                raise _Failed(place, f"{type(cause).__name__}: {cause}") from cause
        raise _Failed(first, f"{type(error).__name__}: {error}") from error


def _is_lost(tokenizer: PreTrainedTokenizerBase, messages: Messages, text: str, options: Mapping[str, Any]) -> bool:
    """Tell whether the rendered text is the same without the text of the last message."""
    last = messages[-1]["content"].strip()
    if not last or last in text:
        return not last
    try:
        return _render(tokenizer, [[*messages[:-1], {**messages[-1], "content": ""}]], options, 0) == [text]
    except _Failed:
        return False


def _names_read(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """List what the template reads, and the parameters of the function that renders it."""
    from jinja2 import meta
    from transformers.utils.chat_template_utils import _compile_jinja_template

    source = tokenizer.get_chat_template()
    environment = _compile_jinja_template(source).environment
    parameters = inspect.signature(tokenizer.apply_chat_template).parameters
    return sorted(meta.find_undeclared_variables(environment.parse(source)) | parameters.keys())


def answers(question: Mapping[str, Any], progress: TextIO) -> dict[str, Any]:
    """Answer a question as it is described above; lines about the progress go to `progress`."""
    prompts, found, last = question["prompts"], {}, time.monotonic()
    for key, model in question["models"].items():

        def say(done: int, name: str = model["name"]) -> None:
            nonlocal last
            if done < len(prompts) and time.monotonic() - last >= _PROGRESS_SECONDS:
                last = time.monotonic()
                print(f"prompts of the {name}: {done:,} of {len(prompts):,} rendered", file=progress, flush=True)

        try:
            tokenizer = load_tokenizer(model["path"], trust_remote_code=model["trust_remote_code"])
            found[key] = examine(tokenizer, prompts, question["options"], say)
        except UserError as error:
            found[key] = {"refused": error.problem}
    return found


def main() -> None:
    """Answer the question on standard input."""
    output, sys.stdout = sys.stdout, sys.stderr  # code that comes with a tokenizer may print
    with os.fdopen(int(sys.argv[1]), "w") as progress:
        found = answers(json.load(sys.stdin), progress)
    print(f"S2D {json.dumps(found)}", file=output, flush=True)


if __name__ == "__main__":
    main()
