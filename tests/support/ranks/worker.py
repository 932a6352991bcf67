"""Steps of stages 2a and 2b by verl's engine, held to transformers in float64: one rank of a group.

python -m tests.support.ranks.worker RANK WORLD DIRECTORY

DIRECTORY has the models `student`, `tied-student` and `teacher`, and rollouts.parquet. Every rank works out the whole
batch itself, so a case's assertions hold on each.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from verl.utils import tensordict_utils as tu
from verl.utils.metric import Metric
from verl.workers.utils.padding import response_from_nested

from tests.support.ranks import flash_on_cpu
from tests.support.ranks.group import work
from tests.support.tiny import WORDS
from verl_s2d.gpu_check.engine_step import (
    batch_of,
    fill_adapters,
    opd_workers,
    record_steps,
    step_configuration,
    warmup_worker,
)
from verl_s2d.gpu_check.plain_step import relative_difference
from verl_s2d.objectives.token_noise import rollout_seeds, token_noise
from verl_s2d.objectives.token_weights import SELECTORS, batch_range, select_tokens, third_quadrant
from verl_s2d.stages.shared.problem_weights import MeasuredWeights
from verl_s2d.stages.warmup.rollout_dataset import CachedRollouts
from verl_s2d.teachers.own_prompt import OWN_PROMPTS, with_own_prompts
from verl_s2d.teachers.refresh import copy_weights, load_weights, save_weights

BATCH, KEEP = 8, 0.4  # of the shortest rollout, two tokens, nothing is kept
BF16 = ["++engine.mixed_precision.param_dtype=bf16", "++engine.mixed_precision.reduce_dtype=fp32"]
LORA = ["model.lora_rank=4", "model.lora_alpha=6"]
LOGITS = ["s2d.materialise_logits=true"]
ULYSSES = [
    "engine.ulysses_sequence_parallel_size=2",
    f"model.override_config.attn_implementation={flash_on_cpu.NAME}",
]
CUTS = {
    "one rollout": ["data.micro_batch_size_per_gpu=1"],
    "two rollouts": ["data.micro_batch_size_per_gpu=2"],
    "four rollouts": ["data.micro_batch_size_per_gpu=4"],
    "by tokens": ["data.use_dynamic_bsz=true", "data.max_token_len_per_gpu=24"],
    "by tokens, padded": [
        "data.use_dynamic_bsz=true",
        "data.max_token_len_per_gpu=24",
        "model.use_remove_padding=false",
    ],
    "from logits": ["data.micro_batch_size_per_gpu=2", *LOGITS],
}
MODES = ("token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-sum-norm", "seq-mean-token-mean")
Gradients = dict[str, torch.Tensor]
PASS_RATES = {f"p{i}": rate for i, rate in enumerate((0.5, 0, 0.25, 1, 0.125, 0.5, 0, 0.875))}
"""Of the rollouts' problems. Two more problems of the slice have no rollout in the batch."""
UNSEEN_RATES = {"p8": 0.75, "p9": 0.5}


def directory() -> Path:
    return Path(sys.argv[3])


def engine_step(
    overrides: list[str],
    *,
    student: str = "student",
    stage: str = "2a",
    mode: str = "token-mean",
    temperature: float = 1.0,
    weights: MeasuredWeights | None = None,
    own_prompts: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> tuple[dict, Gradients, Gradients]:
    """Metrics, gradients and adapters of a step of stage 2a or 2b.

    Args:
        own_prompts: the student's prompt -> the teacher's.
    """
    torch.manual_seed(0)  # of adapters
    cached = directory() / "rollouts.parquet"
    config = step_configuration(
        directory() / student,
        directory() / "teacher",
        cached,
        on_cpu=True,
        overrides=[
            "s2d.chunk_tokens=3",
            "model.use_remove_padding=true",
            *overrides,
        ],
    )
    rollouts = CachedRollouts(str(cached), weights)
    if stage == "2a":
        worker = warmup_worker(config, rollouts)
    else:
        roles = frozenset() if own_prompts is None else frozenset({"teacher"})
        worker, _ = opd_workers(config, len(WORDS), loss_agg_mode=mode, own_prompts=roles)
    fill_adapters(worker.engine.module)
    step = record_steps(worker)
    part = BATCH // worker.engine.get_data_parallel_size()
    mine = range(BATCH)[worker.engine.get_data_parallel_rank() * part :][:part]
    batch = batch_of(config, rollouts, mine, total=BATCH, temperature=temperature)
    if own_prompts is not None:
        rows = [own_prompts(prompt) for prompt in batch["prompts"].unbind()]
        batch[OWN_PROMPTS] = torch.nested.as_nested_tensor(rows, layout=torch.jagged)
    output = worker.train_batch(batch)
    metrics = [None if output is None else dict(tu.get(output, "metrics"))]
    dist.broadcast_object_list(metrics, 0)
    return metrics[0], step.gradients, step.adapters


@cache
def network(name: str) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(directory() / name, dtype=torch.float64)


def definition(log_s: torch.Tensor, log_t: torch.Tensor, name: str, beta: float = 0.5) -> torch.Tensor:
    """(tokens,) divergences."""
    if name == "jsd":
        log_m = torch.logaddexp(log_t + torch.tensor(beta).log(), log_s + torch.tensor(1 - beta).log())
        return beta * definition(log_m, log_t, "forward_kl") + (1 - beta) * definition(log_s, log_m, "reverse_kl")
    p, difference = (log_t, log_t - log_s) if name == "forward_kl" else (log_s, log_s - log_t)
    return (p.exp() * difference).sum(-1)


def plain_step(
    objective: str,
    *,
    student: str = "student",
    mode: str = "token-mean",
    temperature: float = 1.0,
    by: str | None = None,
    clip: float | None = None,
    extrapolation: float | None = None,
    adapters: Gradients | None = None,
    factors: list[float] | None = None,
    own_prompts: Callable[[torch.Tensor], torch.Tensor] = lambda prompt: prompt,
) -> tuple[float, Gradients, float]:
    """Loss, gradients and the share of Q3 in the kept tokens, over the whole batch, one sequence at a time.

    Args:
        by: ranking of tokens, of which the share KEEP is kept; all when None.
        clip: quantile of the batch's divergences.
        extrapolation: ExOPD's lambda, from the base `tied-student`; None for the teacher alone.
        adapters: values of LoRA's parameters, which alone are then trained.
        factors: of the rollouts' losses; 1 when None.
        own_prompts: the student's prompt -> the teacher's.
    """
    model = network(student)
    if adapters:
        model = AutoModelForCausalLM.from_pretrained(directory() / student, dtype=torch.float64)
        model = get_peft_model(model, LoraConfig(r=4, lora_alpha=6, target_modules="all-linear"))
        assert not model.load_state_dict({n: a.double() for n, a in adapters.items()}, strict=False).unexpected_keys
    model.zero_grad()
    losses, entropies, ranked, noises = [], [], [], []
    rows = list(CachedRollouts(str(directory() / "rollouts.parquet")))
    seeds = [rollout_seeds(row["input_ids"], torch.tensor([0, len(row["input_ids"])])) for row in rows]
    for row, seed in zip(rows, seeds, strict=True):
        ids, begin = row["input_ids"][None], int((~row["loss_mask"].bool()).sum()) - 1
        with torch.no_grad():
            theirs = torch.cat([own_prompts(ids[0, : begin + 1]), ids[0, begin + 1 :]])
            # The rows of the response, which end both sequences.
            z = network("teacher")(theirs[None]).logits[:, begin - ids.shape[1] :]
            if extrapolation is not None:
                base = network("tied-student")(ids).logits[:, begin:]
                z = extrapolation * z + (1 - extrapolation) * base
            log_t = (z[0, :-1] / temperature).log_softmax(-1)
        log_s = (model(ids).logits[0, begin:-1] / temperature).log_softmax(-1)
        losses.append(definition(log_s, log_t, objective))
        entropies.append(-(log_s.exp() * log_s).sum(-1).detach())
        ranked.append(definition(log_s, log_t, "forward_kl" if by == "q3" else "reverse_kl").detach())
        noise = token_noise(seed, torch.tensor([0, ids.shape[1]]), ids.shape[1], batch=int(sum(seeds)))
        noises.append(noise[begin:-1])
    share, kept = 0.0, [torch.ones_like(row).detach() for row in losses]
    if by is not None:
        lengths = [len(row) for row in losses]
        ends = torch.tensor([0, *lengths]).cumsum(0)
        measured = torch.cat(entropies), torch.cat(ranked)
        extent = batch_range(*measured, clip_divergence=clip)
        chosen = select_tokens(*measured, ends, by=by, keep=KEEP, extent=extent, noise=torch.cat(noises))
        share = float((chosen * third_quadrant(*measured, extent)).sum() / chosen.sum())
        kept = chosen.double().split(lengths)
        assert kept[0].sum() == 0 < sum(row.sum() for row in kept) < sum(len(row) for row in kept)
    sums, counts = ([(a * b).sum() for a, b in zip(kept, rows, strict=True)] for rows in (losses, kept))
    sums = [factor * total for factor, total in zip(factors or [1.0] * BATCH, sums, strict=True)]
    loss = {
        "token-mean": lambda: sum(sums) / sum(counts),
        "token-sum": lambda: sum(sums),
        "seq-mean-token-sum": lambda: sum(sums) / BATCH,
        "seq-mean-token-sum-norm": lambda: sum(sums) / BATCH / max(len(row) for row in losses),
        "seq-mean-token-mean": lambda: sum(s / c.clamp(min=1) for s, c in zip(sums, counts, strict=True)) / BATCH,
    }[mode]()
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}, share


def ulysses_with_a_temperature(rank: int, world: int, stage: str, overrides: list[str]) -> None:
    """Packed micro-batches of odd and of even length, whose padding verl gives a temperature of 1."""
    lengths = {len(row["input_ids"]) % 2 for row in CachedRollouts(str(directory() / "rollouts.parquet"))}
    assert lengths == {0, 1}
    objective = "forward_kl" if stage == "2a" else "reverse_kl"
    metrics, found, _ = engine_step(
        ["data.micro_batch_size_per_gpu=1", f"+s2d.signal.type={objective}", *ULYSSES, *overrides],
        stage=stage,
        temperature=0.7,
    )
    loss, expected, _ = plain_step(objective, temperature=0.7)
    close(metrics["loss"], loss)
    difference = relative_difference(found, expected)
    assert difference < 1e-5, difference


def bfloat16(rank: int, world: int, student: str, overrides: list[str]) -> None:
    """verl's mixed precision: parameters and products in bf16, and the loss none the worse for it."""
    errors = {}
    for name, more in (("hidden states and head", []), ("the engine's logits", LOGITS)):
        metrics, found, adapters = engine_step(
            ["data.micro_batch_size_per_gpu=4", *BF16, *overrides, *more], student=student
        )
        loss, expected, _ = plain_step("forward_kl", student=student, adapters=adapters)
        close(metrics["loss"], loss, 2e-2)
        errors[name] = relative_difference(found, expected)
    ours, engines = errors.values()
    assert ours < 2e-2 and ours < 1.2 * engines, errors


def kept_tokens(
    rank: int,
    world: int,
    name: str,
    mode: str = "token-mean",
    cut: str | None = None,
    by: str = "tip",
    clip: float | None = None,
) -> None:
    """TIP: verl's mode over the kept tokens alone; a ranking has its own divergence, whatever is minimised.

    Its ranges and its noise are the batch's, so the tokens kept are the same however ranks and micro-batches divide it.
    """
    # A norm by the longest rollout takes that of the micro-batch.
    cuts = [f"data.micro_batch_size_per_gpu={BATCH // world}"] if cut is None else CUTS[cut]
    signal = [f"+s2d.signal.type={name}", f"+s2d.signal.keep_tokens={KEEP}", f"+s2d.signal.keep_by={by}"]
    if clip is not None:
        signal.append(f"+s2d.signal.clip_divergence={clip}")
    metrics, found, _ = engine_step([*signal, *cuts], stage="2b", mode=mode)
    loss, expected, share = plain_step(name, mode=mode, by=by, clip=clip)
    difference = relative_difference(found, expected)
    assert difference < 1e-5, difference
    close(metrics["loss"], loss)
    close(mean(metrics["actor/reverse_kl"]), plain_step("reverse_kl")[0])
    assert abs(mean(metrics["actor/kept_q3_share"]) - share) < 1e-6
    if name != "reverse_kl":
        close(mean(metrics[f"actor/{name}"]), loss)


def two_frozen_models(rank: int, world: int, stage: str, overrides: list[str]) -> None:
    """ExOPD's exact signal: one frozen model inside the other's forward pass, both sharded."""
    base = directory() / "tied-student"
    signal = ["+s2d.signal.type=exopd_exact", "+s2d.signal.lambda=1.5", f"+s2d.models.base.path={base}"]
    cut = "data.micro_batch_size_per_gpu=2"
    metrics, found, _ = engine_step([*signal, cut, *overrides], stage=stage, temperature=0.7)
    loss, expected, _ = plain_step("reverse_kl", temperature=0.7, extrapolation=1.5)
    close(metrics["loss"], loss)
    difference = relative_difference(found, expected)
    assert difference < 1e-5, difference


def problem_weights(
    rank: int, world: int, stage: str, mode: str, cut: str, overrides: list[str], keep: bool = False
) -> None:
    """PACED: each rollout's loss times its problem's weight, normalised over the slice and not over what is trained on.

    Problems solved always or never get no gradient. Divergences are reported over all tokens.
    """
    file = directory() / f"pass-rates-{rank}.json"
    file.write_text(json.dumps(PASS_RATES | UNSEEN_RATES))
    raw = {problem: p * (1 - p) for problem, p in (PASS_RATES | UNSEEN_RATES).items()}
    factors = [raw[problem] * len(raw) / sum(raw.values()) for problem in PASS_RATES]
    assert factors.count(0) == 3
    name = "forward_kl" if stage == "2a" else "reverse_kl"
    signal = [f"+s2d.signal.type={name}", *([f"+s2d.signal.keep_tokens={KEEP}"] if keep else [])]
    metrics, found, _ = engine_step(
        [*signal, *CUTS[cut], *overrides], stage=stage, mode=mode, weights=MeasuredWeights(path=str(file))
    )
    loss, expected, _ = plain_step(name, mode=mode, factors=factors, by="tip" if keep else None)
    close(metrics["loss"], loss)
    difference = relative_difference(found, expected)
    assert difference < 1e-5, difference
    if stage == "2b":
        close(mean(metrics["actor/reverse_kl"]), plain_step("reverse_kl")[0])


def solved_always_or_never(rank: int, world: int) -> None:
    """PACED: a batch of such problems has a loss and a gradient of exactly 0; the slice has others."""
    file = directory() / f"pass-rates-{rank}.json"
    file.write_text(json.dumps({problem: i % 2 for i, problem in enumerate(PASS_RATES)} | UNSEEN_RATES))
    metrics, found, _ = engine_step(CUTS["two rollouts"], weights=MeasuredWeights(path=str(file)))
    assert metrics["loss"] == 0 and found and not any(gradient.any() for gradient in found.values())
    close(metrics["train/forward_kl"], plain_step("forward_kl")[0])


def another(prompt: torch.Tensor) -> torch.Tensor:
    """Another prompt than the student's: a shorter one for those of four tokens, a longer one for the others."""
    return prompt[-1:] if len(prompt) == 4 else torch.cat([torch.arange(2, 8), prompt])


def teachers_own_prompts(rank: int, world: int, cut: str, base: bool = False) -> None:
    """The teacher's logits at the response's positions, after prompts shorter and longer than the student's."""
    rows = CachedRollouts(str(directory() / "rollouts.parquet"))
    prompts = [row["input_ids"][~row["loss_mask"].bool()] for row in rows]
    assert {len(another(prompt)) > len(prompt) for prompt in prompts} == {True, False}
    signal = ["+s2d.signal.type=reverse_kl"]
    if base:
        signal = ["+s2d.signal.type=exopd_exact", "+s2d.signal.lambda=1.5"]
        signal.append(f"+s2d.models.base.path={directory() / 'tied-student'}")
    overrides = [*signal, *CUTS[cut]]
    metrics, found, _ = engine_step(overrides, stage="2b", temperature=0.7, own_prompts=another)
    loss, expected, _ = plain_step(
        "reverse_kl", temperature=0.7, own_prompts=another, extrapolation=1.5 if base else None
    )
    close(metrics["loss"], loss)
    difference = relative_difference(found, expected)
    assert difference < 1e-5, difference


def equal_prompts(rank: int, world: int, cut: str) -> None:
    """Prompts of the teacher's own that equal the student's change nothing, to the bit."""
    overrides = ["+s2d.signal.type=reverse_kl", *CUTS[cut]]
    plain, without, _ = engine_step(overrides, stage="2b")
    own, found, _ = engine_step(overrides, stage="2b", own_prompts=torch.clone)
    assert own["loss"] == plain["loss"] and all(torch.equal(found[name], without[name]) for name in without)


def log_probs_after_own_prompts(rank: int, world: int, overrides: list[str]) -> None:
    """The reference pass of an advantage, on sequences rebuilt with the teacher's prompts."""
    cached = directory() / "rollouts.parquet"
    signal = ["+s2d.signal.type=reverse_kl", "model.use_remove_padding=true", *overrides]
    config = step_configuration(directory() / "student", directory() / "teacher", cached, on_cpu=True, overrides=signal)
    _, frozen = opd_workers(config, len(WORDS), own_prompts=frozenset({"teacher"}))
    batch = batch_of(config, CachedRollouts(str(cached)), range(BATCH), total=BATCH)
    rows = [another(prompt) for prompt in batch["prompts"].unbind()]
    batch[OWN_PROMPTS] = torch.nested.as_nested_tensor(rows, layout=torch.jagged)
    tu.assign_non_tensor(batch, compute_loss=False, calculate_entropy=False)
    output = frozen["teacher"].infer_batch(with_own_prompts(batch))
    found = response_from_nested(output["log_probs"], batch["response_mask"])
    for own, response, values in zip(rows, batch["responses"].unbind(), found.unbind(), strict=True):
        with torch.no_grad():
            logits = network("teacher")(torch.cat([own, response])[None]).logits[0, len(own) - 1 : -1]
        expected = logits.log_softmax(-1).gather(-1, response[:, None])[:, 0]
        torch.testing.assert_close(values.double(), expected, atol=1e-5, rtol=1e-5)


def refreshed_teacher(rank: int, world: int) -> None:
    """CRISP: a teacher that is made the student agrees with it, and what a checkpoint keeps of it comes back."""
    student, cached = directory() / "student", directory() / "rollouts.parquet"
    overrides = ["+s2d.signal.type=reverse_kl", "model.use_remove_padding=true", *CUTS["two rollouts"]]
    config = step_configuration(student, student, cached, on_cpu=True, overrides=[*overrides, "optim.lr=0.01"])
    rollouts = CachedRollouts(str(cached))
    worker, frozen = opd_workers(config, len(WORDS), own_prompts=frozenset({"teacher"}))
    teacher, saved = frozen["teacher"].engine, directory() / "saved" / f"rank_{rank}.safetensors"
    part = BATCH // worker.engine.get_data_parallel_size()
    mine = range(BATCH)[worker.engine.get_data_parallel_rank() * part :][:part]

    def divergence(own_prompts: Callable[[torch.Tensor], torch.Tensor]) -> float:
        batch = batch_of(config, rollouts, mine, total=BATCH)
        rows = [own_prompts(prompt) for prompt in batch["prompts"].unbind()]
        batch[OWN_PROMPTS] = torch.nested.as_nested_tensor(rows, layout=torch.jagged)
        output = worker.train_batch(batch)
        found = [None if output is None else mean(tu.get(output, "metrics")["actor/reverse_kl"])]
        dist.broadcast_object_list(found, 0)
        return found[0]

    assert divergence(another) > 1e-4, "another prompt makes another teacher of the same weights"
    copy_weights(worker.engine, teacher)
    save_weights(teacher, saved)
    # The update follows the measurement, so the next one sees a student that has moved.
    assert abs(divergence(torch.clone)) < 1e-9
    divergence(another)
    moved = divergence(torch.clone)
    assert moved > 1e-6
    copy_weights(worker.engine, teacher)
    assert abs(divergence(torch.clone)) < 1e-9
    load_weights(teacher, saved)
    assert divergence(torch.clone) > 1e-6


def mean(metric: Metric | list[Metric]) -> float:
    """Aggregate what micro-batches and ranks reported."""
    return Metric.aggregate_dp(metric) if isinstance(metric, list) else metric.aggregate()


def close(found: float, expected: float, relative: float = 1e-5) -> None:
    assert abs(found - expected) <= relative * abs(expected), (found, expected)


def cases(world: int) -> dict[str, Callable[[int, int], None]]:
    """Name -> what to run on every rank, in this order."""
    found = {
        f"bf16: {student}{', LoRA' if more else ''}": partial(bfloat16, student=student, overrides=more)
        for student, more in (("student", []), ("tied-student", []), ("student", LORA))
    }
    for mode in MODES if world == 1 else (MODES[0], MODES[-1]):
        found[f"kept tokens: {mode}"] = partial(kept_tokens, name="reverse_kl", mode=mode)
    for name in ("jsd", "forward_kl"):
        found[f"kept tokens: {name}"] = partial(kept_tokens, name=name)
    for by in SELECTORS[1:]:
        for cut in (None, "one rollout", *(["by tokens, padded"] if by == "entropy" else [])):
            found[f"kept by {by}: micro-batches of {cut or 'all'}"] = partial(
                kept_tokens, name="reverse_kl", cut=cut, by=by
            )
    for by in ("tip", "q3"):
        found[f"kept by {by}, clipped"] = partial(kept_tokens, name="reverse_kl", by=by, cut="one rollout", clip=0.7)
    for cut in CUTS:
        found[f"kept tokens: micro-batches of {cut}"] = partial(kept_tokens, name="reverse_kl", cut=cut)
    for stage, more in (("2a", []), ("2b", LOGITS)):
        name = f"two frozen models: {stage}{', from logits' if more else ''}"
        found[name] = partial(two_frozen_models, stage=stage, overrides=more)
    for stage, mode, cut, more in (
        ("2a", "token-mean", "one rollout", []),
        ("2a", "token-mean", "four rollouts", []),
        ("2b", "token-mean", "by tokens, padded", []),
        ("2b", "seq-mean-token-mean", "two rollouts", LOGITS),
    ):
        name = f"problem weights: {stage}, micro-batches of {cut}"
        found[name] = partial(problem_weights, stage=stage, mode=mode, cut=cut, overrides=more)
    found["problems solved always or never"] = solved_always_or_never
    found["problem weights and kept tokens"] = partial(
        problem_weights, stage="2b", mode="token-mean", cut="two rollouts", overrides=[], keep=True
    )
    for cut in ("two rollouts", "by tokens, padded", "from logits"):
        found[f"the teacher's own prompts: {cut}"] = partial(teachers_own_prompts, cut=cut)
        found[f"equal prompts: {cut}"] = partial(equal_prompts, cut=cut)
    found["the teacher's own prompts beside a base"] = partial(teachers_own_prompts, cut="two rollouts", base=True)
    found["a refreshed teacher"] = refreshed_teacher
    for cut in ("two rollouts", "by tokens, padded") if world == 1 else ():
        name = f"log-probs after the teacher's own prompts: {cut}"
        found[name] = partial(log_probs_after_own_prompts, overrides=CUTS[cut])
    if world == 2:
        for stage, more in (("2a", []), ("2b", []), ("2a", LOGITS)):
            name = f"Ulysses with a temperature: {stage}{', from logits' if more else ''}"
            found[name] = partial(ulysses_with_a_temperature, stage=stage, overrides=more)
    return found


if __name__ == "__main__":
    rank, world = sys.argv[1:3]
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    flash_on_cpu.register()
    work(cases)
