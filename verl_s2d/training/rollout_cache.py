"""The cache that stage 2a trains on: K rollouts of every prompt from the teacher.

    python -m verl_s2d.training.rollout_cache model=MODEL data=FILE out=DIR n=K max_tokens=N
        [temperature=1] [top_p=1] [top_k=-1] [seed=0] [tensor_parallel_size=1] [trust_remote_code=false]
        [chat_template.<name>=<value> ...]

Writes rollouts.parquet (prompt_ids, response_ids with EOS where it was generated, finish_reason, problem_id, sample)
and, last, rollouts.json. Answers in the data file are not looked at. A problem's rollouts follow from the model, the
settings and the seed: not from the other problems.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from verl_s2d import arguments
from verl_s2d.data.files import write_json, written_whole
from verl_s2d.data.problems import read_problems
from verl_s2d.sampling import Sampler, check_settings, load_tokenizer, longest, render_prompt

SCHEMA = pa.schema(
    [
        ("prompt_ids", pa.list_(pa.int32())),
        ("response_ids", pa.list_(pa.int32())),
        ("finish_reason", pa.string()),
        ("problem_id", pa.string()),
        ("sample", pa.int32()),
    ]
)
_PROBLEMS_AT_ONCE = 1024
"""Bounds the memory that finished samples take before they are written."""


@dataclass(frozen=True)
class Options:
    """Command line of this module."""

    model: str
    """The teacher: a Hugging Face directory or hub id."""
    data: str
    """Parquet in verl's columns."""
    out: str
    n: int
    """Rollouts a prompt."""
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    seed: int = 0
    tensor_parallel_size: int = 1
    trust_remote_code: bool = False
    chat_template: dict[str, Any] = field(default_factory=dict)
    """verl's data.apply_chat_template_kwargs."""


def main(options: Options) -> None:
    """Sample and write. Raises UserError for unusable data or an unreadable model, before anything is loaded."""
    settings = {k: getattr(options, k) for k in ("n", "temperature", "top_p", "top_k", "max_tokens")}
    check_settings(**settings)
    settings["seed"] = options.seed
    problems = read_problems(options.data)
    tokenizer = load_tokenizer(options.model, trust_remote_code=options.trust_remote_code)
    prompts = [render_prompt(tokenizer, p.messages, options.chat_template) for p in problems]
    print(f"rollouts: {len(problems)} prompts, {options.n} each, from {options.model}", flush=True)

    started = time.perf_counter()
    sampler = Sampler(
        options.model,
        context=longest(prompts) + options.max_tokens,
        tensor_parallel_size=options.tensor_parallel_size,
        trust_remote_code=options.trust_remote_code,
        seed=options.seed,
    )
    print(f"rollouts: engine ready in {time.perf_counter() - started:.1f} s", flush=True)

    out, counts = Path(options.out), {"sequences": 0, "sampled_tokens": 0, "truncated": 0}
    with written_whole(out / "rollouts.parquet") as temporary, pq.ParquetWriter(temporary, SCHEMA) as writer:
        for first in range(0, len(problems), _PROBLEMS_AT_ONCE):
            part = slice(first, first + _PROBLEMS_AT_ONCE)
            rows = [
                {
                    "prompt_ids": prompt,
                    "response_ids": completion.token_ids,
                    "finish_reason": completion.finish_reason,
                    "problem_id": problem.id,
                    "sample": number,
                }
                for problem, prompt, completions in zip(
                    problems[part], prompts[part], sampler.sample(prompts[part], **settings), strict=True
                )
                for number, completion in enumerate(completions)
            ]
            writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
            counts["sequences"] += len(rows)
            counts["sampled_tokens"] += sum(len(row["response_ids"]) for row in rows)
            counts["truncated"] += sum(row["finish_reason"] == "length" for row in rows)
            done = min(part.stop, len(problems))
            print(f"rollouts: {done}/{len(problems)} prompts, {counts['sampled_tokens']} tokens", flush=True)
    write_json({"model": options.model, "settings": settings, "counts": counts}, out / "rollouts.json")


if __name__ == "__main__":
    arguments.run(main, Options)
