"""Ask a model behind an OpenAI-compatible endpoint, such as a vLLM server; remember its answers within the process."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPException
from typing import Any, TypeVar

from pydantic import Field, FiniteFloat, field_validator

from verl_s2d.errors import Unscored
from verl_s2d.validation import Refused, Section
from verl_s2d.verifiers.judge_costs import report_judged
from verl_s2d.verifiers.remembered import Remembered

T = TypeVar("T")

_ENV = "env:"


class Judge(Section):
    """An endpoint and the model that it serves."""

    url: str
    """Up to /v1: http://host:8000/v1. `env:NAME` reads it from the environment, so that another address builds no stage
    again."""
    model: str
    key: str | None = None
    """`env:NAME`: the environment variable that holds the API key."""
    seconds: FiniteFloat = Field(120.0, gt=0)
    """Limit of one call; a judge that takes longer could not judge."""
    max_tokens: int = Field(1024, ge=1)
    """Limit of an answer, thinking included."""
    constrained: bool = False
    """Let vLLM produce verdicts alone, by its structured outputs: no thinking, and none that cannot be read."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further fields of the request, such as {chat_template_kwargs: {enable_thinking: false}}."""

    @field_validator("url")
    @classmethod
    def _is_http(cls, url: str) -> str:
        if not url.startswith(("http://", "https://", _ENV)):
            raise Refused("This is no URL of an endpoint.", value=url, remedy="Write http://host:port/v1, or env:NAME.")
        return url.rstrip("/")

    @field_validator("key")
    @classmethod
    def _is_a_name(cls, key: str | None) -> str | None:
        if key is not None and not key.startswith(_ENV):
            raise Refused(
                "A key in a recipe could be read in logs and command lines.", value="<hidden>", remedy="Write env:NAME."
            )
        return key


_remembered: Remembered[Any] = Remembered()


def ask(judge: Judge, messages: Sequence[Mapping[str, str]], pattern: str, read: Callable[[str], T]) -> T:
    """Ask a judge and read its answer; the same question is answered from memory.

    Args:
        pattern: regular expression of an answer, for a judge that is constrained.
        read: reads an answer; where it raises Unscored, the judge is asked once more, at temperature 1.

    Raises:
        Unscored: no endpoint, an error of its own, no answer in time, or two answers that cannot be read.
    """
    body: dict[str, Any] = {"model": judge.model, "messages": list(messages), "max_tokens": judge.max_tokens}
    if judge.constrained:
        body["structured_outputs"] = {"regex": pattern}

    def answered() -> T:
        try:
            return read(_answer(judge, {**body, "temperature": 0.0, **judge.options}))
        except Unscored as error:
            if not error.lasting:
                raise
            return read(_answer(judge, {**body, "temperature": 1.0, **judge.options}))

    return _remembered.get([judge.url, judge.options, body], answered)


def request(judge: Judge, path: str, body: Mapping[str, Any] | None = None) -> Any:
    """Send a request, POST with a body and GET without; returns the JSON of the reply.

    Raises:
        Unscored: no endpoint, an error of its own, no reply in time, or no JSON.
    """
    url = f"{_from_environment(judge.url, 'url').rstrip('/')}{path}"
    headers = {"Content-Type": "application/json"}
    if judge.key is not None:
        headers["Authorization"] = f"Bearer {_from_environment(judge.key, 'key')}"
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=judge.seconds) as reply:
            return json.loads(reply.read())
    except urllib.error.HTTPError as error:
        text = " ".join(error.read(300).decode(errors="replace").split())
        raise Unscored(f"the judge at {url} answers {error.code}: {text}") from None
    except (OSError, HTTPException, ValueError) as error:
        # No connection, a connection that breaks off, a limit of time, half a reply.
        reason = getattr(error, "reason", None) or error
        raise Unscored(f"the judge at {url} cannot be asked: {type(error).__name__}: {reason}") from None


def _answer(judge: Judge, body: Mapping[str, Any]) -> str:
    reply = request(judge, "/chat/completions", body)
    try:
        (choice,), tokens = reply["choices"], int((reply.get("usage") or {}).get("total_tokens", 0))
        text, reason = choice["message"]["content"], choice.get("finish_reason")
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise Unscored(f"the judge {judge.model} sent a reply of another form: {error!r}") from None
    report_judged(tokens)
    if reason == "length" or not isinstance(text, str):
        raise Unscored(f"the judge {judge.model} was cut off at {judge.max_tokens} tokens", lasting=True)
    return text


def _from_environment(value: str, name: str) -> str:
    if not value.startswith(_ENV):
        return value
    found = os.environ.get(value.removeprefix(_ENV), "")
    if not found:
        raise Unscored(f"the environment variable {value.removeprefix(_ENV)}, with the judge's {name}, is not set")
    return found
