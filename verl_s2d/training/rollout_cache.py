"""The cache that stage 2a trains on: K rollouts of every prompt from the teacher.

    python -m verl_s2d.training.rollout_cache model=MODEL data=FILE out=DIR n=K max_tokens=N
        [temperature=1] [top_p=1] [top_k=-1] [seed=0] [tensor_parallel_size=1] [trust_remote_code=false]
        [replicas=1] [device=auto] [engine.<name>=<value> ...] [chat_template.<name>=<value> ...]

Writes rollouts.parquet (prompt_ids, response_ids with EOS where it was generated, finish_reason, problem_id, sample)
and, last, rollouts.json. Answers in the data file are not looked at. A problem's rollouts follow from the model, the
settings and the seed: not from the other problems. Samples are kept in parts while it works (verl_s2d.sampling): the
same command goes on where it was killed. `replicas` engines share the work, each on tensor_parallel_size GPUs of this
machine; how many there are does not matter to the result.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from verl_s2d import arguments
from verl_s2d.data.files import discard_unfinished, write_json, written_whole
from verl_s2d.data.problems import read_problems
from verl_s2d.platforms.environment import prepare_for_vllm
from verl_s2d.sampling.complete import complete
from verl_s2d.sampling.engine import on_cpu
from verl_s2d.sampling.parts import token_count
from verl_s2d.sampling.prompts import load_tokenizer, render_prompt
from verl_s2d.sampling.request import Request, Settings

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
"""Whose rollouts make a row group of the file: bounds the memory they take before they are written."""


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
    replicas: int = 1
    device: str = "auto"
    """`cpu`, `cuda` (any accelerator), or `auto` for what this machine has."""
    engine: dict[str, Any] = field(default_factory=dict)
    """More arguments of vLLM's LLM, such as gpu_memory_utilization."""
    trust_remote_code: bool = False
    chat_template: dict[str, Any] = field(default_factory=dict)
    """verl's data.apply_chat_template_kwargs."""


def main(options: Options) -> None:
    """Sample and write. Raises UserError for unusable data or an unreadable model, before anything is loaded."""
    prepare_for_vllm()
    on_cpu(options.device)
    names = ("n", "temperature", "top_p", "top_k", "max_tokens", "seed")
    settings = Settings(**{name: getattr(options, name) for name in names})
    problems = read_problems(options.data)
    tokenizer = load_tokenizer(options.model, trust_remote_code=options.trust_remote_code)
    prompts = [render_prompt(tokenizer, p.messages, options.chat_template) for p in problems]
    print(f"rollouts: {len(problems)} prompts, {options.n} each, from {options.model}", flush=True)
    request = Request(
        options.model,
        prompts,
        settings,
        files={"data": options.data},
        trust_remote_code=options.trust_remote_code,
        tensor_parallel_size=options.tensor_parallel_size,
        device=options.device,
        engine=options.engine,
    )
    out = Path(options.out)
    parts = complete(request, out, name="rollouts", replicas=options.replicas)

    counts = {"sequences": 0, "sampled_tokens": 0, "truncated": 0}
    discard_unfinished(out / "rollouts.parquet")
    with written_whole(out / "rollouts.parquet") as temporary, pq.ParquetWriter(temporary, SCHEMA) as writer:
        for first, samples in parts.tables(_PROBLEMS_AT_ONCE):
            places = [first + row // options.n for row in range(len(samples))]
            columns = {
                "prompt_ids": [prompts[place] for place in places],
                "response_ids": samples["response_ids"],
                "finish_reason": samples["finish_reason"],
                "problem_id": [problems[place].id for place in places],
                "sample": [row % options.n for row in range(len(samples))],
            }
            writer.write_table(pa.Table.from_pydict(columns, SCHEMA))
            counts["sequences"] += len(samples)
            counts["sampled_tokens"] += token_count(samples)
            counts["truncated"] += samples["finish_reason"].to_pylist().count("length")
    write_json({"model": options.model, "settings": asdict(settings), "counts": counts}, out / "rollouts.json")
    parts.remove()


if __name__ == "__main__":
    arguments.run(main, Options)
