"""Render prompts with the chat templates of models, in a process of its own: it imports transformers.

    python -m verl_s2d.sampling.render_process FD

Reads {models: {key: {name, path, trust_remote_code}}, prompts: [messages, ...], options, date} as JSON from standard
input and prints `S2D {key: answer, ...}`. FD is a file descriptor for lines about the progress. An answer is
{refused: text} for a tokenizer that cannot be used, {failed: place of a prompt, reason} for a template that raises, or

    tokens  length of every prompt
    texts   digest of every rendered text
    empty   places of prompts without the text of their last message
    reads   names that the template reads and does not set
    largest largest token id of all prompts
    end     token that the template writes after a response, null for none
    shown   the first prompt with its special tokens in brackets

With `cut: N` the answer is {cut: [messages or null, ...]}: every prompt shortened to N tokens with each of the models.
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
from verl_s2d.platforms.subprocess_query import answering
from verl_s2d.platforms.template_date import VARIABLE
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
    answer: dict[str, Any] = {"tokens": [], "texts": [], "empty": [], "largest": 0, "shown": ""}
    answer |= {"reads": _names_read(tokenizer), "end": _end(tokenizer, prompts[0], options)}
    for start in range(0, len(prompts), _AT_ONCE):
        chunk = prompts[start : start + _AT_ONCE]
        try:
            texts = _render(tokenizer, chunk, options, start)
        except _Failed as failure:
            place, reason = failure.args
            return {"failed": place, "reason": reason}
        # The library encodes a batch on all cores.
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        answer["tokens"] += map(len, ids)
        answer["largest"] = max(answer["largest"], *(max(of_prompt, default=0) for of_prompt in ids))
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


def cut(
    tokenizers: Sequence[PreTrainedTokenizerBase], messages: Messages, options: Mapping[str, Any], limit: int
) -> Messages | None:
    """Remove text from the start of the longest message until no tokenizer makes more than `limit` tokens of it.

    Cutting the text, and not the tokens, leaves the template's own tokens whole.

    Returns:
        The messages; None when nothing of the longest message would be left.

    Raises:
        _Failed: a template cannot render them.
    """
    place = max(range(len(messages)), key=lambda i: len(messages[i]["content"]))
    text = messages[place]["content"]

    def without(start: int) -> list[Mapping[str, Any]]:
        return [*messages[:place], {**messages[place], "content": text[start:]}, *messages[place + 1 :]]

    def fits(start: int) -> bool:
        return all(
            len(tokenizer(rendered, add_special_tokens=False)["input_ids"]) <= limit
            for tokenizer in tokenizers
            for rendered in _render(tokenizer, [without(start)], options, 0)
        )

    too_long, short = -1, len(text)
    while short - too_long > 1:
        middle = (too_long + short) // 2
        too_long, short = (too_long, middle) if fits(middle) else (middle, short)
    return without(short) if text[short:].strip() else None


def _is_lost(tokenizer: PreTrainedTokenizerBase, messages: Messages, text: str, options: Mapping[str, Any]) -> bool:
    """Tell whether the rendered text is the same without the text of the last message."""
    last = messages[-1]["content"]
    if not isinstance(last, str):
        return False
    last = last.strip()
    if not last or last in text:
        return not last
    try:
        return _render(tokenizer, [[*messages[:-1], {**messages[-1], "content": ""}]], options, 0) == [text]
    except _Failed:
        return False


def _end(tokenizer: PreTrainedTokenizerBase, messages: Messages, options: Mapping[str, Any]) -> str | None:
    """Return the first special token that the template writes after a response."""
    response = "S2D"
    try:
        whole = [*messages, {"role": "assistant", "content": response}]
        text = tokenizer.apply_chat_template(whole, tokenize=False, **options)
    except Exception:  # a template may refuse to render a response; prompts alone are what it is used for
        return None
    _, found, after = text.rpartition(response)
    special = tokenizer.added_tokens_decoder
    ids = tokenizer(after, add_special_tokens=False)["input_ids"] if found else []
    return next((special[i].content for i in ids if i in special), None)


def _names_read(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """List what the template reads, and the parameters of the function that renders it."""
    from jinja2 import meta, nodes
    from transformers.utils.chat_template_utils import _compile_jinja_template

    source = tokenizer.get_chat_template()
    environment = _compile_jinja_template(source).environment
    parameters = inspect.signature(tokenizer.apply_chat_template).parameters
    tree = environment.parse(source)
    # jinja's own list leaves out the functions that transformers gives to every template.
    functions = {node.name for node in tree.find_all(nodes.Name)} & environment.globals.keys()
    return sorted(meta.find_undeclared_variables(tree) | functions | parameters.keys())


def answers(question: Mapping[str, Any], progress: TextIO) -> dict[str, Any]:
    """Answer a question as it is described above; lines about the progress go to `progress`."""
    os.environ[VARIABLE] = question["date"]
    if "cut" in question:
        tokenizers = [_load(model) for model in question["models"].values()]
        options, limit = question["options"], question["cut"]
        return {"cut": [cut(tokenizers, messages, options, limit) for messages in question["prompts"]]}
    prompts, found, last = question["prompts"], {}, time.monotonic()
    for key, model in question["models"].items():

        def say(done: int, name: str = model["name"]) -> None:
            nonlocal last
            if done < len(prompts) and time.monotonic() - last >= _PROGRESS_SECONDS:
                last = time.monotonic()
                print(f"prompts of the {name}: {done:,} of {len(prompts):,} rendered", file=progress, flush=True)

        try:
            found[key] = examine(_load(model), prompts, question["options"], say)
        except UserError as error:
            found[key] = {"refused": error.problem}
    return found


def _load(model: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    return load_tokenizer(model["path"], trust_remote_code=model["trust_remote_code"])


def main() -> None:
    """Answer the question on standard input."""
    answer = answering()
    with os.fdopen(int(sys.argv[1]), "w") as progress:
        answer(answers(json.load(sys.stdin), progress))


if __name__ == "__main__":
    main()
