"""Refuse verl's sampling settings that vLLM would refuse at the first rollout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verl_s2d.errors import Faults, UserError

MOST_TEMPERATURE = 2.0
"""vLLM's limit (vllm/sampling_params.py)."""


def check_sampling(rollout: Mapping[str, Any], key: str) -> None:
    """Check temperature, top_p, top_k and lengths of verl's rollout section and of its validation.

    Args:
        key: dotted key of the section, for messages.

    Raises:
        UserError: the values that vLLM refuses.
    """
    faults = Faults()
    for section, at, least in (
        (rollout, key, "more than 0"),
        (rollout.get("val_kwargs") or {}, f"{key}.val_kwargs", "0"),
    ):
        temperature, top_p, top_k = (section.get(name, default) for name, default in _DEFAULTS.items())
        for name, value, valid, remedy in (
            (
                "temperature",
                temperature,
                (temperature > 0 or least == "0") and 0 <= temperature <= MOST_TEMPERATURE,
                f"From {least} to {MOST_TEMPERATURE:g}.",
            ),
            ("top_p", top_p, 0 < top_p <= 1, "Above 0, at most 1; 1 takes all tokens."),
            ("top_k", top_k, isinstance(top_k, int) and top_k >= -1, "At least 1, or -1 for all tokens."),
        ):
            if not valid:
                faults.add(UserError("vLLM does not sample so.", key=f"{at}.{name}", value=value, remedy=remedy))
    longest, needed = rollout.get("max_model_len"), rollout.get("prompt_length", 0) + rollout.get("response_length", 0)
    if longest is not None and longest < needed:
        faults.add(
            UserError(
                f"The engine takes fewer tokens than prompt and response have ({needed}).",
                key=f"{key}.max_model_len",
                value=longest,
                remedy=f"Leave it out, or at least {needed}.",
            )
        )
    faults.raise_found()


_DEFAULTS = {"temperature": 1.0, "top_p": 1.0, "top_k": -1}
