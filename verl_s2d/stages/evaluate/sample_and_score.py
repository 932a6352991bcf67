"""Sample answers of one model on several sets and score them: avg@k.

    python -m verl_s2d.stages.evaluate.sample_and_score model=MODEL verifier=NAME out=DIR max_tokens=N
        set.<name>=FILE ... [samples=16] [temperature=1] [top_p=1] [top_k=-1] [seed=0]
        [tensor_parallel_size=1] [trust_remote_code=false] [replicas=1] [device=auto]
        [engine.<name>=<value> ...] [weights=DIGEST] [pass_at=1,4,16]
        [chat_template.<name>=<value> ...] [columns.<name>=<column> ...]

Writes generations.parquet (every sample: its problem, text and score) and, last, result.json. Samples and their
scores are kept in parts while it works (verl_s2d.sampling): the same command goes on where it was killed. `replicas`
engines share the work, each on tensor_parallel_size GPUs of one node of the Ray cluster (RAY_ADDRESS; without it, this
machine). As with the rollout cache, the samples do not depend on how many there are: exactly so on a CPU in fp32, in
bf16 on a GPU up to rounding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from verl_s2d import arguments
from verl_s2d.data.files import discard_unfinished, write_json, write_parquet
from verl_s2d.data.formats.column_names import columns_of
from verl_s2d.data.problems import Problem, read_problems
from verl_s2d.errors import UserError
from verl_s2d.platforms.environment import prepare_for_vllm
from verl_s2d.recipe.pass_at_k import check_pass_at, mean_pass_at, usual_ks
from verl_s2d.sampling.complete import complete
from verl_s2d.sampling.engine import on_cpu
from verl_s2d.sampling.prompts import load_tokenizer, render_prompt
from verl_s2d.sampling.sampling_options import SamplingOptions
from verl_s2d.sampling.shards import Part
from verl_s2d.stages.evaluate.scoring import GENERATIONS, Scorer
from verl_s2d.stages.evaluate.statistics import mean_and_stderr

MOST_UNSCORED = 0.01
"""Share of a set's samples that the verifier may fail to judge; they are left out."""


@dataclass(frozen=True, kw_only=True)
class Options(SamplingOptions):
    """Command line of this module."""

    verifier: str
    """Name of a verifier, or file.py:function."""
    set: dict[str, str] = field(default_factory=dict)
    """Evaluation sets: name -> data file."""
    columns: dict[str, str] = field(default_factory=dict)
    """Names of the columns in those sets that have them."""
    samples: int = 16
    pass_at: str = ""
    """The k of pass@k, comma separated; empty for 1, 2, 4, ..., samples."""


def main(options: Options) -> None:
    """Sample, score, write. Raises UserError for unusable input before the model is loaded."""
    prepare_for_vllm()
    on_cpu(options.device)
    if not options.set:
        raise UserError("There is nothing to evaluate on.", key="set.<name>", remedy="Give set.<name>=<parquet>.")
    settings, ks = options.settings(options.samples), _ks(options)
    columns = columns_of(options.columns)
    sets = {
        name: read_problems(file, key=f"set.{name}", columns=columns, own_columns=True)
        for name, file in options.set.items()
    }
    tokenizer = load_tokenizer(options.model, trust_remote_code=options.trust_remote_code)
    problems = [(name, problem) for name, members in sets.items() for problem in members]
    print(f"evaluation: {len(problems)} problems, {options.samples} samples each, {options.model}", flush=True)

    prompts = [render_prompt(tokenizer, p.messages, options.chat_template) for _, p in problems]
    request = options.request(prompts, settings, files=options.set)
    out = Path(options.out)
    with Scorer(problems, options.verifier, tokenizer) as scorer:
        for members in sets.values():
            scorer.check(members[0])
        parts = complete(
            request, out, name="evaluation", replicas=options.replicas, order=_set_size(problems), whole=scorer.score
        )
        rows = scorer.rows()
    discard_unfinished(out / "generations.parquet")
    write_parquet(pa.Table.from_pylist(rows, GENERATIONS), out / "generations.parquet")
    result = summarise(rows, options.samples, ks)
    _require_scored(result)
    if calls := sum(row["judge_calls"] or 0 for row in rows):
        result["judge"] = {"calls": calls, "tokens": sum(row["judge_tokens"] or 0 for row in rows)}
    sampling = settings.written()
    result["sampling"] = {"samples": sampling.pop("n"), **sampling}
    write_json(result, out / "result.json")
    parts.remove()
    for name, values in result["sets"].items():
        print(f"evaluation: {name} avg@{options.samples} {100 * values['avg']:.1f} %", flush=True)
        if values["unsettled"]:
            print(f"evaluation: {name} {values['unsettled']} samples without a verdict count as wrong", flush=True)
        if values.get("unscored"):
            print(f"evaluation: {name} {values['unscored']} unscored samples do not count", flush=True)


def _require_scored(result: Mapping[str, Any]) -> None:
    """Raise UserError where more samples of a set could not be judged than may be left out."""
    for name, values in result["sets"].items():
        number = values["samples"] * (values["n_problems"] + len(values.get("left_out", ())))
        if values.get("unscored", 0) > MOST_UNSCORED * number:
            raise UserError(
                f"The verifier could not judge {values['unscored']} of {number} samples of {name}; the log says why.",
                key="verifier",
                remedy=f"At most {MOST_UNSCORED:.0%} of a set may be left out. Help the judge (judge.constrained, more "
                "max_tokens), and run the same command again: samples are kept.",
            )


def _set_size(problems: Sequence[tuple[str, Problem]]) -> Callable[[Part], float]:
    """Return the size of a problem's set, to sample the smallest sets first.

    Small sets tend to be hard, with the longest answers: an engine that begins them last ends on a few of them alone.
    """
    sizes = Counter(name for name, _ in problems)
    return lambda part: min(sizes[name] for name, _ in problems[slice(*part.made_from["prompts"][:2])])


def _ks(options: Options) -> list[int]:
    if not options.pass_at:
        return usual_ks(options.samples)
    try:
        ks = [int(k) for k in options.pass_at.split(",")]
    except ValueError:
        remedy = "Give whole numbers, comma separated."
        raise UserError("Not a list of k.", key="pass_at", value=options.pass_at, remedy=remedy) from None
    check_pass_at(ks, options.samples, "pass_at")
    return ks


def summarise(rows: Sequence[Mapping[str, Any]], samples: int, ks: Sequence[int] = ()) -> dict[str, Any]:
    """Compute `sets` and `per_problem` of result.json from rows of generations.parquet.

    avg is the mean over problems of the mean over samples. stderr is its standard error over problems, null for a
    single problem. truncated counts the samples cut off by max_tokens, unsettled those without a verdict, also of a
    problem that has some. Unscored samples do not count: a problem has fewer samples then, or is left out (`left_out`),
    and pass@k is that of the problems with all their samples.

    `levels` has avg and stderr for each level of the data, if it has levels;
    `sources` for each data source of a set that has several.
    """
    by_set: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for row in rows:
        by_set.setdefault(row["set"], {}).setdefault(row["id"], []).append(row)
    result: dict[str, Any] = {"sets": {}, "per_problem": {}}
    for name, problems in by_set.items():
        members = [row for rows in problems.values() for row in rows]
        unscored = sum(bool(row.get("unscored")) for row in members)
        scored = {i: sum(not row.get("unscored") for row in rows) for i, rows in problems.items()}
        left_out = [i for i, number in scored.items() if not number]
        correct = {i: sum(row["correct"] for row in rows) for i, rows in problems.items() if scored[i]}
        whole = [c for i, c in correct.items() if scored[i] == samples]

        def average(of: Callable[[str], bool], correct=correct, scored=scored) -> dict[str, Any]:
            return _average([c / scored[i] for i, c in correct.items() if of(i)])

        levels = sorted({level for row in members if (level := row.get("level")) is not None})
        result["sets"][name] = {
            **average(lambda i: True),
            "samples": samples,
            "pass_at": mean_pass_at(whole, samples, ks or usual_ks(samples)) if whole else {},
            "mean_tokens": sum(len(row["response_ids"]) for row in members) / len(members),
            "truncated": sum(row["finish_reason"] == "length" for row in members),
            "unsettled": sum(bool(row.get("unsettled")) for row in members),
            "levels": {
                level: average(lambda i, level=level, of=problems: of[i][0].get("level") == level) for level in levels
            },
            **({"unscored": unscored, "left_out": left_out} if unscored else {}),
        }
        sources = sorted({source for row in members if (source := row.get("data_source")) is not None})
        if len(sources) > 1:
            result["sets"][name]["sources"] = {
                source: average(lambda i, source=source, of=problems: of[i][0]["data_source"] == source)
                for source in sources
            }
        unsettled = {i: sum(bool(row.get("unsettled")) for row in members) for i, members in problems.items()}
        result["per_problem"][name] = [
            {"id": i, "correct": c, "samples": scored[i], **({"unsettled": n} if (n := unsettled[i]) else {})}
            for i, c in correct.items()
        ]
    return result


def _average(rates: Sequence[float]) -> dict[str, Any]:
    """Compute avg and stderr from each problem's share of correct samples."""
    if not rates:
        return {"n_problems": 0, "avg": 0.0, "stderr": None}
    estimate = mean_and_stderr(rates)
    stderr = estimate.stderr if len(rates) > 1 else None
    return {"n_problems": len(rates), "avg": estimate.mean, "stderr": stderr}


if __name__ == "__main__":
    arguments.run(main, Options)
