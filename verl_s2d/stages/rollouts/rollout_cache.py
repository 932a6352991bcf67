"""Sample the teacher's rollouts into the cache that stage 2a trains on.

    python -m verl_s2d.stages.rollouts.rollout_cache model=MODEL data=FILE out=DIR max_tokens=N  n=K | rows=R
        [temperature=1] [top_p=1] [top_k=-1] [seed=0] [tensor_parallel_size=1] [trust_remote_code=false]
        [log_probs=0] [replicas=1] [device=auto] [engine.<name>=<value> ...] [weights=DIGEST]
        [chat_template.<name>=<value> ...]

With n every prompt has n rollouts. With rows there are as many in all, for a warmup that reads each once: of different
prompts as long as there are some, drawn in a seeded order, and otherwise every prompt has as many as any other, or one
more. A greedy rollout is not repeated.

Writes rollouts.parquet (prompt_ids, response_ids with EOS where it was generated, finish_reason, problem_id, sample,
data_source) and, last, rollouts.json. With log_probs=K also top_ids and top_log_probs, the teacher's K most likely
tokens at each response token and their log-probs at temperature 1: the signal top_k trains on them without the teacher.

Answers in the data file are not looked at. Samples are kept in parts while it works (verl_s2d.sampling): the same
command goes on where it was killed. `replicas` engines share the work, each on tensor_parallel_size GPUs of one node of
the Ray cluster (RAY_ADDRESS; without it, this machine).

A problem's rollouts follow from the model, the settings and the seed: on a CPU in fp32 exactly, whatever the other
problems, the number of engines and the kills. On a GPU in bf16 they do up to rounding: logits depend on which sequences
are in a batch together, and one other token changes all that follow. VLLM_BATCH_INVARIANT=1 in the environment of the
command is vLLM's way to have that exact, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from verl_s2d import arguments
from verl_s2d.data.files import discard_unfinished, write_json, written_whole
from verl_s2d.data.problems import read_problems
from verl_s2d.errors import UserError
from verl_s2d.platforms.environment import prepare_for_vllm
from verl_s2d.sampling import likely_tokens
from verl_s2d.sampling.complete import complete
from verl_s2d.sampling.engine import on_cpu
from verl_s2d.sampling.prompts import load_tokenizer, render_prompt
from verl_s2d.sampling.sampling_options import SamplingOptions
from verl_s2d.sampling.shards import token_count
from verl_s2d.stages.warmup.rollout_dataset import ShuffledPasses

SCHEMA = pa.schema(
    [
        ("prompt_ids", pa.list_(pa.int32())),
        ("response_ids", pa.list_(pa.int32())),
        ("finish_reason", pa.string()),
        ("problem_id", pa.string()),
        ("sample", pa.int32()),
        ("data_source", pa.string()),
    ]
)
_PROBLEMS_AT_ONCE = 1024
"""Prompts per row group of the file: bounds the rollouts in memory before they are written."""


@dataclass(frozen=True, kw_only=True)
class Options(SamplingOptions):
    """Command line of this module; `model` is the teacher."""

    data: str
    """Parquet in verl's columns."""
    n: int | None = None
    """Rollouts per prompt."""
    rows: int | None = None
    """Total number of rollouts, instead of n."""
    log_probs: int = 0
    """Most likely tokens to store beside each response token."""


def main(options: Options) -> None:
    """Sample and write. Raises UserError for unusable data or an unreadable model, before anything is loaded."""
    prepare_for_vllm()
    on_cpu(options.device)
    problems = read_problems(options.data)
    order, n, extra = _layout(options, len(problems))
    problems = [problems[place] for place in order]
    settings = options.settings(n, options.log_probs)
    tokenizer = load_tokenizer(options.model, trust_remote_code=options.trust_remote_code)
    prompts = [render_prompt(tokenizer, p.messages, options.chat_template) for p in problems]
    rows = n * len(problems) + extra
    print(f"rollouts: {rows} samples of {len(problems)} prompts, from {options.model}", flush=True)
    request = options.request(prompts, settings, files={"data": options.data}, extra=extra)
    out = Path(options.out)
    parts = complete(request, out, name="rollouts", replicas=options.replicas)

    sampled = ((place, sample) for place in range(len(problems)) for sample in range(request.samples_of(place)))
    counts = {"prompts": len(problems), "sequences": 0, "sampled_tokens": 0, "truncated": 0}
    discard_unfinished(out / "rollouts.parquet")
    likely = likely_tokens.fields(options.log_probs)
    schema = pa.schema([*SCHEMA, *(pa.field(*column) for column in likely)])
    with written_whole(out / "rollouts.parquet") as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for samples in parts.tables(_PROBLEMS_AT_ONCE):
            members = list(islice(sampled, len(samples)))
            columns = {
                "prompt_ids": [prompts[place] for place, _ in members],
                "response_ids": samples["response_ids"],
                "finish_reason": samples["finish_reason"],
                "problem_id": [problems[place].id for place, _ in members],
                "sample": [sample for _, sample in members],
                "data_source": [problems[place].data_source for place, _ in members],
                **{name: samples[name] for name, _ in likely},
            }
            writer.write_table(pa.Table.from_pydict(columns, schema))
            counts["sequences"] += len(samples)
            counts["sampled_tokens"] += token_count(samples)
            counts["truncated"] += samples["finish_reason"].to_pylist().count("length")
    write_json({"model": options.model, "settings": settings.written(), "counts": counts}, out / "rollouts.json")
    parts.remove()


def _layout(options: Options, problems: int) -> tuple[Sequence[int], int, int]:
    """Choose problems and samples: (indices of the problems in the data, samples of each, how many have one more)."""
    if (options.n is None) == (options.rows is None):
        raise UserError(
            "How much to sample is said in one way.",
            key="n, rows",
            value=(options.n, options.rows),
            remedy="Give n=<rollouts a prompt> or rows=<rollouts in all>.",
        )
    if options.rows is None:
        return range(problems), options.n, 0
    if options.rows < 1:
        raise UserError("There is nothing to sample.", key="rows", value=options.rows, remedy="At least 1.")
    rows = options.rows if options.temperature > 0 else min(options.rows, problems)
    used = min(rows, problems)
    return list(ShuffledPasses(problems, used, options.seed)), *divmod(rows, used)


if __name__ == "__main__":
    arguments.run(main, Options)
