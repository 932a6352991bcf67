"""One rank of a Megatron group that takes our full-vocabulary steps, run as a process of its own.

python -m tests.support.ranks.megatron RANK WORLD DIRECTORY

Workers, loss and layout are ours, engine and schedule verl's and Megatron's. The reference takes one sequence at a time
through undivided models and writes the objective out in plain torch.
"""

from __future__ import annotations

from functools import cache, partial
from types import SimpleNamespace

import torch
from megatron.core import parallel_state
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.utils.metric import Metric

from tests.support.ranks.group import work
from tests.support.ranks.megatron_cases import CASES, TOP_K, Case
from tests.support.ranks.megatron_engine import adopt, engine, gpt, name_in_whole, own, use_cpu
from tests.support.top_k_reference import definition
from verl_s2d.signals.in_verl.aggregation import ResponseMean
from verl_s2d.stages.shared.distillation import Distillation, read_distillation
from verl_s2d.stages.shared.distilled_worker import DistilledWorker
from verl_s2d.stages.warmup.config_checks import WarmupConfig
from verl_s2d.stages.warmup.worker import WarmupWorker

# Real ids, and both sides' padding: 12 and 14 ids a rank.
REAL, STUDENT, TEACHER = 22, {"width": 16, "vocabulary": 24, "seed": 0}, {"width": 32, "vocabulary": 28, "seed": 1}
TEMPERATURE, BETA, K = 0.7, 0.3, 5
# Prompt, response, and which of the response counts.
ROLLOUTS = (
    ([3, 4, 5], [6, 21, 8, 0], [1, 1, 1, 1]),
    ([9], [10, 11], [1, 1]),
    ([12, 13, 14, 15], [16, 17, 18, 19, 20, 21, 1], [1, 1, 0, 0, 1, 1, 1]),
    ([2, 2], [7], [1]),
)
Weights = dict[str, torch.Tensor]
Results = tuple[float, dict[str, float], Weights, tuple[Weights, Weights]]
# ids and log-probs of the teacher's K likeliest tokens, (tokens, K) of each rollout; row t is about token t + 1.
Known = list[tuple[torch.Tensor, torch.Tensor]]


def parallel(tensor: int, context: int, pipeline: int) -> None:
    """Make these Megatron's groups, unless they are."""
    if parallel_state.is_initialized():
        found = (
            parallel_state.get_tensor_model_parallel_world_size(),
            parallel_state.get_context_parallel_world_size(),
            parallel_state.get_pipeline_model_parallel_world_size(),
        )
        if found == (tensor, context, pipeline):
            return
        parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=tensor, context_parallel_size=context, pipeline_model_parallel_size=pipeline
    )


@cache
def known(mixes: bool, tied: bool) -> Known:
    """Compute the answers of a cache or a server about the teacher, whose padding has no probability."""
    parallel(1, 1, 1)
    teacher, found = gpt(**TEACHER, mixes=mixes, tied=tied), []
    for prompt, response, _ in ROLLOUTS:
        with torch.no_grad():
            logits = teacher(torch.tensor([prompt + response]), None, None)[0][:, :REAL] / TEMPERATURE
        best = logits.log_softmax(-1).topk(K)
        found.append((best.indices.int(), best.values))
    return found


@cache
def reference(objective: str, rollouts: str | None, mixes: bool, tied: bool) -> Results:
    """Loss, metrics, the whole student's gradients, and both models' weights."""
    parallel(1, 1, 1)
    student, teacher = (gpt(**sizes, mixes=mixes, tied=tied) for sizes in (STUDENT, TEACHER))
    found: list[dict[str, torch.Tensor]] = []
    for (prompt, response, counts), (top_ids, top_log_probs) in zip(ROLLOUTS, known(mixes, tied), strict=True):
        ids = torch.tensor([prompt + response])
        at = (torch.tensor(counts).nonzero().squeeze(-1) + len(prompt) - 1, slice(0, REAL))
        with torch.no_grad():
            t = (teacher(ids, None, None)[0][at] / TEMPERATURE).log_softmax(-1)
        s = (student(ids, None, None)[0][at] / TEMPERATURE).log_softmax(-1)
        mixture = torch.logaddexp(t + torch.tensor(BETA).log(), s + torch.tensor(1 - BETA).log())
        values = {
            "forward_kl": (t.exp() * (t - s)).sum(-1),
            "reverse_kl": (s.exp() * (s - t)).sum(-1),
            "jsd": (BETA * t.exp() * (t - mixture) + (1 - BETA) * s.exp() * (s - mixture)).sum(-1),
            TOP_K: definition(s, top_ids[at[0]], top_log_probs[at[0]], "bucket", "reverse_kl").float(),
        }[objective]
        chosen = ids[0, at[0] + 1, None]
        found.append(
            {
                "values": values,
                "student_entropy": -(s.exp() * s).sum(-1),
                "teacher_entropy": -(t.exp() * t).sum(-1),
                "top1_agreement": (s.argmax(-1) == t.argmax(-1)).float(),
                "ratio": (s - t).gather(-1, chosen)[:, 0],
            }
        )
    everything = {name: torch.cat([part[name] for part in found]) for name in found[0]}
    loss = {
        None: everything["values"].mean(),
        "token-mean": everything["values"].mean(),
        "seq-mean-token-sum": torch.stack([part["values"].sum() for part in found]).mean(),
        "seq-mean-token-mean": torch.stack([part["values"].mean() for part in found]).mean(),
    }[rollouts]
    loss.backward()
    metrics, name = {}, objective
    if objective == TOP_K:
        name = "reverse_kl"
    else:
        logged = ("student_entropy", "teacher_entropy", "top1_agreement")
        metrics = {name: everything[name].mean().item() for name in logged}
    metrics |= {
        name: everything["values"].mean().item(),
        f"{name}_max": everything["values"].max().item(),
        "teacher_scored_tokens": len(everything["values"]),
    }
    if objective == "jsd":
        metrics["reverse_kl"] = everything["ratio"].mean().item()
    weights = tuple({name: p.detach() for name, p in model.named_parameters()} for model in (student, teacher))
    return loss.item(), metrics, {name: p.grad for name, p in student.named_parameters()}, weights


def batch(case: Case) -> TensorDict:
    """This rank's rollouts as the warmup or as OPD has them."""
    ranks = parallel_state.get_data_parallel_world_size()
    mine = ROLLOUTS[parallel_state.get_data_parallel_rank() :: ranks]

    def nested(rows: list[list[int]]) -> torch.Tensor:
        return torch.nested.as_nested_tensor([torch.tensor(row) for row in rows], layout=torch.jagged)

    fields = {"input_ids": nested([prompt + response for prompt, response, _ in mine])}
    if case.rollouts is None:
        fields["loss_mask"] = nested([[0] * len(prompt) + counts for prompt, _, counts in mine])
    else:
        fields |= {
            "prompts": nested([prompt for prompt, _, _ in mine]),
            "responses": nested([response for _, response, _ in mine]),
            "response_mask": nested([counts for _, _, counts in mine]),
            "loss_mask": nested([counts for _, _, counts in mine]),
        }
    if case.objective == TOP_K:
        rows = known(case.context == 1, case.tied)[parallel_state.get_data_parallel_rank() :: ranks]
        for name, values in zip(("teacher_ids", "teacher_logprobs"), zip(*rows, strict=True), strict=True):
            fields[name] = torch.nested.as_nested_tensor(list(values), layout=torch.jagged)
    settings = {
        "use_dynamic_bsz": False,
        "micro_batch_size_per_gpu": case.micro_batch,
        "temperature": TEMPERATURE,
        "global_batch_size": len(ROLLOUTS),
        "pad_mode": "no_padding",
    }
    return tu.get_tensordict(fields, settings)


def worker(case: Case, weights: tuple[Weights, Weights]) -> DistilledWorker:
    """The stage's worker, with what verl's initialisation leaves behind put there by hand."""
    models = {"mixes": case.context == 1, "sequence": case.sequence, "per_token": case.per_token, "tied": case.tied}
    student, teacher = (
        adopt(gpt(**sizes, **models), whole) for sizes, whole in zip((STUDENT, TEACHER), weights, strict=True)
    )
    engines = {"data_format": case.data_format, "pads_alike": not case.sequence}
    made = object.__new__(WarmupWorker if case.rollouts is None else DistilledWorker)
    made.engine = engine(student, **engines, forward_only=False)
    teacher = engine(teacher, **engines, forward_only=True)
    made.engine_config, made.model_config, made.device_name = made.engine.engine_config, {}, "cpu"
    made._skip_limit, made._skipped_in_a_row, made.flops_counter = 1, 0, None
    keys = {"jsd": {"beta": BETA}, TOP_K: {"k": K, "objective": "reverse_kl"}}.get(case.objective, {})
    section = {"signal": {"type": case.objective} | keys, "chunk_tokens": 3}
    if case.objective == TOP_K:
        settings, frozen = read_distillation(WarmupConfig, section, signal="forward_kl"), {}
    else:
        section["teacher"] = {"path": "teacher"}
        settings = read_distillation(Distillation, section, signal="forward_kl")
        frozen = {"teacher": SimpleNamespace(engine=teacher, reset=lambda: None)}
    if case.rollouts is None:
        made._settings, made._vocab_size, made.frozen = settings, REAL, frozen
        made.reset()
    else:
        made.learn_from(frozen, settings, vocab_size=REAL, aggregate=ResponseMean(case.rollouts), prefix="actor/")
    return made


def step(rank: int, world: int, case: Case) -> None:
    """A training step's loss, metrics and gradients are the reference's."""
    loss, metrics, gradients, weights = reference(case.objective, case.rollouts, case.context == 1, case.tied)
    parallel(case.tensor, case.context, case.pipeline)
    made = worker(case, weights)
    output = made.train_batch(batch(case))
    model = made.engine.optimizer.model
    parameters, ours = dict(model.named_parameters()), made.engine.optimizer.gradients
    wholes = {name: name_in_whole(name, model) for name in ours}
    assert case.pipeline > 1 or set(wholes.values()) == gradients.keys()
    for name, whole in wholes.items():
        expected = own(name, gradients[whole], parameters)
        assert (ours[name] - expected).norm() <= 1e-5 * expected.norm(), name
    assert (output is not None) == made.engine.is_mp_src_rank_with_outputs()
    if output is None:
        return
    logged, prefix = dict(tu.get(output, "metrics")), "train/" if case.rollouts is None else "actor/"
    assert abs(logged["loss"] - loss) <= 1e-5 * abs(loss), (logged["loss"], loss)
    for name, expected in metrics.items():
        found = logged[f"{prefix}{name}"]
        found = Metric.aggregate_dp(found) if isinstance(found, list) else found
        assert abs(found - expected) <= 1e-5 * abs(expected), (name, found, expected)


if __name__ == "__main__":
    use_cpu()
    work(lambda world: {name: partial(step, case=case) for name, case in CASES.items() if case.ranks == world})
