"""Compare a student with a teacher on rollouts of both: exact divergences, overlap, implicit reward.

    python -m verl_s2d.stages.compare.compare_models student=MODEL teacher=MODEL problems=FILE student_rollouts=FILE
        teacher_rollouts=FILE out=DIR [verifier=NAME] [device=auto] [batch_tokens=16384] [top_k=16]
        [student_remote_code=false] [teacher_remote_code=false] [chat_template.<name>=<value> ...]

Nothing is trained and no label is read. Both models are on one device: in float32 on a CPU, in bfloat16 on an
accelerator. Writes compare.json. Means are over response tokens, standard errors over problems:

    student_rollouts: reverse_kl KL(pi_S || pi_T), which stage 2b minimises, with the share of it that the largest 1 %
        of tokens make up; overlap and masses of the top-k sets; separation, the probability that a right rollout has
        the larger implicit reward sum_t log pi_T(y_t) / pi_S(y_t) than a wrong one of the same problem
        (arXiv 2605.12483): .5 for a teacher that is not reward-shaped
    teacher_rollouts: forward_kl KL(pi_T || pi_S), which stage 2a minimises; travel, its square root: a student that
        has become the teacher has travelled so far from its start (arXiv 2609.32722)
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from verl_s2d import arguments
from verl_s2d.data.files import write_json
from verl_s2d.errors import UserError
from verl_s2d.objectives.overlap import TopKHealth
from verl_s2d.platforms.device import resolve_device
from verl_s2d.sampling.prompts import load_tokenizer
from verl_s2d.stages.compare.pair_scores import LOG_RATIO, FrozenNetwork, RolloutScore, score
from verl_s2d.stages.compare.scored_rollouts import ScoredRollout, batches, read_rollouts
from verl_s2d.stages.compare.stage import COMPARED
from verl_s2d.stages.evaluate.statistics import Estimate, mean_and_stderr, ratio_and_stderr
from verl_s2d.teachers.model_pair import real_vocabulary
from verl_s2d.verifiers.registry import extractor_of

_LARGEST = 0.01
_AGREEMENT = ("student_entropy", "teacher_entropy", "top1_agreement", *TopKHealth._fields)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Command line of this module."""

    student: str
    teacher: str
    """Hugging Face directories or hub ids."""
    problems: str
    """Parquet of the problems."""
    student_rollouts: str
    teacher_rollouts: str
    """generations.parquet of each model."""
    out: str
    verifier: str | None = None
    """Also measure the share of finished responses from which it extracts an answer."""
    device: str = "auto"
    batch_tokens: int = 16384
    """Padded tokens of a forward pass."""
    top_k: int = 16
    student_remote_code: bool = False
    teacher_remote_code: bool = False
    chat_template: dict[str, Any] = field(default_factory=dict)


def main(options: Options) -> None:
    """Load, score, write. Raises UserError for a device that is not here or a model that cannot be read."""
    device = resolve_device(options.device)
    if device != "cpu" and not torch.cuda.is_available():
        raise UserError("torch sees no accelerator here.", key="device", value=device, remedy="Choose cpu.")
    extract = extractor_of(options.verifier) if options.verifier else None
    models = (options.student, options.student_remote_code), (options.teacher, options.teacher_remote_code)
    tokenizers = [load_tokenizer(model, trust_remote_code=trusted) for model, trusted in models]
    student, teacher = (_load(model, trusted, device) for model, trusted in models)
    vocab_size = real_vocabulary(tokenizers[0], student.config, teacher.config)
    networks = FrozenNetwork(student), FrozenNetwork(teacher)
    result, scored_tokens = {}, 0
    for name, file, tokenizer, objective in (
        ("student_rollouts", options.student_rollouts, tokenizers[0], "reverse_kl"),
        ("teacher_rollouts", options.teacher_rollouts, tokenizers[1], "forward_kl"),
    ):
        rollouts = read_rollouts(file, options.problems, tokenizer, options.chat_template)
        scores: dict[int, RolloutScore] = {}
        for batch in batches(rollouts, options.batch_tokens):
            found = score(
                *networks,
                [rollouts[place] for place in batch],
                objective=objective,
                vocab_size=vocab_size,
                top_k=min(options.top_k, vocab_size),
                device=device,
            )
            scores |= dict(zip(batch, found, strict=True))
            print(f"compare: {name} {len(scores)} of {len(rollouts)}", flush=True)
        result[name] = summarise_side(rollouts, [scores[place] for place in range(len(rollouts))], objective, extract)
        scored_tokens += result[name]["tokens"]
    result["top_k"] = min(options.top_k, vocab_size)
    write_json(result | {"scored_tokens": scored_tokens}, Path(options.out) / COMPARED)


def summarise_side(
    rollouts: Sequence[ScoredRollout],
    scores: Sequence[RolloutScore],
    objective: str,
    extract: Callable[[str], str | None] | None = None,
) -> dict[str, Any]:
    """Compute the entry of compare.json for the rollouts of one model."""
    divergences = torch.cat([found.divergences for found in scores])
    told: dict[str, Any] = {
        "rollouts": len(rollouts),
        "problems": len({rollout.problem for rollout in rollouts}),
        "tokens": len(divergences),
        "truncated": sum(not rollout.finished for rollout in rollouts),
        "parse_rate": _parse_rate(rollouts, extract),
        objective: _told(_over_tokens(rollouts, [found.divergences.sum().item() for found in scores])),
    }
    if objective == "forward_kl":
        return told | {"travel": math.sqrt(max(0.0, told[objective]["mean"]))}
    largest = divergences.topk(max(1, round(_LARGEST * len(divergences)))).values.sum().item()
    total = divergences.sum().item()
    return told | {
        "largest_1_percent": largest / total if total > 0 else 0.0,
        "separation": separation(rollouts, [found.sums[LOG_RATIO] for found in scores]),
        **{name: _told(_over_tokens(rollouts, [found.sums[name] for found in scores])) for name in _AGREEMENT},
    }


def separation(rollouts: Sequence[ScoredRollout], rewards: Sequence[float]) -> dict[str, Any]:
    """Compute the probability that a right rollout has a larger reward than a wrong one of its problem; ties count 1/2.

    Returns:
        mean and stderr over the problems with both outcomes, and their number; null means without such a problem.
    """
    by_problem: dict[str, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for rollout, reward in zip(rollouts, rewards, strict=True):
        by_problem[rollout.problem][rollout.correct].append(reward)
    shares = [
        sum((r > w) + 0.5 * (r == w) for r in right for w in wrong) / (len(right) * len(wrong))
        for wrong, right in by_problem.values()
        if right and wrong
    ]
    if not shares:
        return {"mean": None, "stderr": None, "problems": 0}
    return _told(mean_and_stderr(shares)) | {"problems": len(shares)}


def _over_tokens(rollouts: Sequence[ScoredRollout], sums: Sequence[float]) -> Estimate:
    """Estimate a mean over response tokens from each rollout's sum, with its standard error over problems."""
    totals: dict[str, float] = defaultdict(float)
    tokens: dict[str, int] = defaultdict(int)
    for rollout, value in zip(rollouts, sums, strict=True):
        totals[rollout.problem] += value
        tokens[rollout.problem] += len(rollout.response)
    return ratio_and_stderr(list(totals.values()), list(tokens.values()))


def _told(estimate: Estimate) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in estimate._asdict().items()}


def _parse_rate(rollouts: Sequence[ScoredRollout], extract: Callable[[str], str | None] | None) -> float | None:
    finished = [rollout.text for rollout in rollouts if rollout.finished]
    if extract is None or not finished:
        return None
    return sum(extract(text) is not None for text in finished) / len(finished)


def _load(model: str, trusted: bool, device: str) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    network = AutoModelForCausalLM.from_pretrained(
        model, dtype=dtype, trust_remote_code=trusted, use_safetensors=True, low_cpu_mem_usage=True
    )
    return network.to(device).eval()


if __name__ == "__main__":
    arguments.run(main, Options)
