"""Fix the date that chat templates print (`strftime_now`): the same in every stage, and on every day of a run."""

from __future__ import annotations

import os
from datetime import datetime

VARIABLE = "S2D_TEMPLATE_DATE"
"""Environment variable with the date; without it templates print today's."""
DEFAULT = "2024-07-26"
"""The date that Llama's templates print where nobody gives one."""


def freeze_template_date() -> None:
    """Let `strftime_now` of transformers' chat templates return the date of the environment, if it has one."""
    date = os.environ.get(VARIABLE)
    if not date:
        return
    from transformers.utils import chat_template_utils

    fixed = datetime.fromisoformat(date)

    class Frozen(datetime):
        @classmethod
        def now(cls, tz=None):
            return fixed

    chat_template_utils.datetime = Frozen
