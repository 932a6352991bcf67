"""Ask several teachers in verl's trainer, each about the rollouts of the problems that it serves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transfer_queue as tq
from tensordict import TensorDict

from verl_s2d.stages.opd.config import ROLE
from verl_s2d.stages.opd.metrics import sampled_reverse_kl_metrics
from verl_s2d.stages.opd.routed_passes import routed_passes
from verl_s2d.teachers.router import TEACHER_OF_ROW, Router

_DATA_SOURCE, _ANSWER = "data_source", "ref_log_prob"  # verl's names


def roles_of_rows(router: Router, batch: Any) -> list[str]:
    """Name the teacher that serves each rollout of a step.

    Args:
        batch: verl's meta data of the rollouts.

    Raises:
        UserError: nobody serves a rollout's data source.
    """
    return [router.role(source) for source in _data_sources(batch)]


def ask_each(
    router: Router, batch: Any, ask: Callable[[str, Any], None], *, micro_batch: int | None, ranks: int
) -> None:
    """Write the teachers' log-probs of the sampled tokens as one verl field, ref_log_prob.

    Teachers with equal checkpoints are asked at once. With one checkpoint for all, this is verl's own pass.

    Args:
        batch: verl's meta data of the rollouts.
        ask: writes ref_log_prob of rollouts under the model in a role; extra_info names it too.
        micro_batch: rollouts of a micro-batch on a rank; None for micro-batches by tokens.
        ranks: data-parallel ranks.

    Raises:
        UserError: nobody serves a rollout's data source.
    """
    answers: list[torch.Tensor] = [torch.empty(0)] * len(batch)
    lengths = [tag["seq_len"] for tag in batch.tags]
    for one in routed_passes(router.groups(_data_sources(batch)), lengths, ranks=ranks, micro_batch=micro_batch):
        asked = batch.select_keys([batch.keys[row] for row in one.asked])
        asked.extra_info[ROLE] = one.role
        if one.micro_batch is not None:
            asked.extra_info["micro_batch_size_per_gpu"] = one.micro_batch
        ask(one.role, asked)
        own = [batch.keys[row] for row in one.rows]
        found = tq.kv_batch_get(keys=own, partition_id=batch.partition_id, select_fields=[_ANSWER])[_ANSWER]
        for row, answer in zip(one.rows, found.unbind(), strict=True):
            answers[row] = answer
    # Rollouts that filled up another teacher's pass have its answers.
    nested = torch.nested.as_nested_tensor(answers, layout=torch.jagged)
    fields = TensorDict({_ANSWER: nested}, batch_size=len(batch))
    tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=fields)


def write_teachers(router: Router, batch: Any) -> None:
    """Write which teacher each rollout has, for a loss over the whole vocabulary.

    Raises:
        UserError: nobody serves a rollout's data source.
    """
    places = {role: place for place, role in enumerate(router.models)}
    teachers = torch.tensor([places[role] for role in roles_of_rows(router, batch)])
    fields = TensorDict({TEACHER_OF_ROW: teachers}, batch_size=len(batch))
    tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=fields)


def count_metrics(roles: list[str], response_mask: torch.Tensor) -> dict[str, float]:
    """Count each teacher's rollouts and sampled tokens in a step, as s2d/<role>/rows and tokens.

    Args:
        roles: of each rollout's teacher.
        response_mask: (batch, response).
    """
    metrics: dict[str, float] = {}
    for role in dict.fromkeys(roles):
        mask = _own(roles, role, response_mask)
        metrics |= {f"s2d/{role}/rows": int(mask.any(dim=1).sum()), f"s2d/{role}/tokens": int(mask.sum())}
    return metrics


def teacher_metrics(
    roles: list[str],
    advantages: torch.Tensor,
    old_log_probs: torch.Tensor,
    teacher_log_probs: torch.Tensor,
    response_mask: torch.Tensor,
) -> dict[str, float]:
    """Compute s2d/<role>/rows, tokens, advantage (mean), reverse_kl and reverse_kl_max of every teacher in a step.

    Args:
        roles: of each rollout's teacher.
        advantages, old_log_probs, teacher_log_probs, response_mask: (batch, response).
    """
    metrics = count_metrics(roles, response_mask)
    for role in dict.fromkeys(roles):
        mask = _own(roles, role, response_mask)
        compared = sampled_reverse_kl_metrics(old_log_probs, teacher_log_probs, mask)
        metrics |= {name.replace("s2d/", f"s2d/{role}/"): value for name, value in compared.items()}
        mean = advantages[mask].float().mean().item() if bool(mask.any()) else 0.0
        metrics[f"s2d/{role}/advantage"] = mean
    return metrics


def _own(roles: list[str], role: str, response_mask: torch.Tensor) -> torch.Tensor:
    own = torch.tensor([other == role for other in roles], device=response_mask.device)
    return response_mask.bool() & own.unsqueeze(-1)


def _data_sources(batch: Any) -> list[str]:
    fields = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=[_DATA_SOURCE])
    # A list, a stack or an array, by TransferQueue's backend.
    return list(fields[_DATA_SOURCE])
