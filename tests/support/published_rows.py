"""Rows with the columns and types of published files; the problems are ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_STEP = "Let's think step by step and output the final answer"


def gsm8k(i: int) -> dict[str, Any]:
    """openai/gsm8k."""
    return {"question": _question(i), "answer": f"He has {i} + 1000 = <<{i}+1000={i + 1000}>>.\n#### 1,{i:03d}"}


def gsm8k_of_verl(i: int) -> dict[str, Any]:
    """examples/data_preprocess/gsm8k.py of verl."""
    raw = gsm8k(i)
    return {
        "data_source": "openai/gsm8k",
        "prompt": [{"role": "user", "content": f'{raw["question"]} {_STEP} after "####".'}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": str(i + 1000)},
        "extra_info": {"split": "train", "index": i, "answer": raw["answer"], "question": raw["question"]},
    }


def math(i: int) -> dict[str, Any]:
    """DigitalLearningGmbH/MATH-lighteval."""
    solution = rf"We need $\boxed{{x}}$, so\n\[x = {i} + 1000 = \boxed{{{i + 1000}}}.\]"
    return {"problem": f"Find $x = {i} + 1000$.", "level": "Level 2", "solution": solution, "type": "Algebra"}


def math_of_verl(i: int) -> dict[str, Any]:
    r"""examples/data_preprocess/math_dataset.py of verl, which leaves level and type where they are."""
    raw = math(i)
    return {
        "level": raw["level"],
        "type": raw["type"],
        "data_source": "DigitalLearningGmbH/MATH-lighteval",
        "prompt": [{"role": "user", "content": rf"{raw['problem']} {_STEP} within \boxed{{}}."}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": str(i + 1000)},
        "extra_info": {"split": "train", "index": i},
    }


def openr1(i: int) -> dict[str, Any]:
    """open-r1/OpenR1-Math-220k."""
    raw = math(i)
    return {
        "problem": raw["problem"],
        "solution": raw["solution"],
        "answer": str(i + 1000),
        "problem_type": "Algebra",
        "question_type": "math-word-problem",
        "source": "olympiads",
        "uuid": f"uuid-{i}",
        "is_reasoning_complete": [True, False],
        "generations": ["<think>...</think>", "<think>"],
        "correctness_count": 1,
        "messages": [
            {"role": "user", "content": raw["problem"]},
            {"role": "assistant", "content": "<think>...</think>"},
        ],
    }


def deepscaler(i: int) -> dict[str, Any]:
    """agentica-org/DeepScaleR-Preview-Dataset."""
    return {"problem": _question(i), "answer": str(i + 1000), "solution": ""}


def chat(i: int) -> dict[str, Any]:
    """Conversations that end with the answer, as for supervised fine-tuning."""
    solution = rf"That is \boxed{{{i + 1000}}}"
    return {
        "messages": [{"role": "user", "content": _question(i)}, {"role": "assistant", "content": solution}],
    }


def prompts_with_answers(i: int) -> dict[str, Any]:
    """Conversational prompts with an answer beside them, as trl takes them."""
    return {"prompt": [{"role": "user", "content": _question(i)}], "answer": i + 1000}


def of_parts(i: int) -> dict[str, Any]:
    """verl's columns with content as a list of parts."""
    row = gsm8k_of_verl(i)
    text = row["prompt"][0]["content"]
    parts = [{"type": "text", "text": text[:7]}, {"type": "text", "text": text[7:]}]
    return row | {"prompt": [{"role": "user", "content": parts}]}


def with_nulls(i: int) -> dict[str, Any]:
    """verl's columns from a data set whose messages have fields that no row uses."""
    row = gsm8k_of_verl(i)
    return row | {"prompt": [row["prompt"][0] | {"name": None, "tool_calls": None}]}


def without_ids(i: int) -> dict[str, Any]:
    """verl's columns with the prompt as text, and nothing to tell problems by."""
    row = gsm8k_of_verl(i)
    return {
        "data_source": row["data_source"],
        "prompt": row["prompt"][0]["content"],
        "reward_model": {"ground_truth": str(i + 1000)},
    }


LAYOUTS: dict[str, Callable[[int], dict[str, Any]]] = {
    layout.__name__: layout
    for layout in (
        gsm8k,
        gsm8k_of_verl,
        math,
        math_of_verl,
        openr1,
        deepscaler,
        chat,
        prompts_with_answers,
        of_parts,
        with_nulls,
        without_ids,
    )
}


def _question(i: int) -> str:
    return f"Tom has {i} coins and gets 1,000 more. How many has he?"
