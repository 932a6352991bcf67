"""Adapt to verl's Megatron engine: logits sharded over the vocabulary, tokens laid out for parallel ranks.

Imports Megatron only when called: elsewhere it need not be installed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.workers.engine import BaseEngine

from verl_s2d.objectives.vocabulary import VocabularyShard


def is_megatron(engine: BaseEngine) -> bool:
    """Report whether the engine is Megatron's, which holds a list of model chunks, one per virtual pipeline stage."""
    return isinstance(engine.module, list)


def is_pipelined() -> bool:
    """Report whether the layers of Megatron's models here are divided among ranks."""
    from megatron.core import parallel_state

    return parallel_state.get_pipeline_model_parallel_world_size() > 1


def forward(engine: BaseEngine, micro_batch: TensorDict, processor: Callable[..., Any]) -> None:
    """Run a micro-batch through a model with a single pipeline stage, without Megatron's schedule."""
    engine.forward_step(iter([micro_batch]), engine.module[0], processor, _ignored)


def _ignored(*_: Any, **__: Any) -> None:
    """Replace the schedule's reduction of the output to a loss."""


def in_sharded_layout(packed: torch.Tensor, micro_batch: TensorDict, data_format: str) -> torch.Tensor:
    """Select packed values for the logits rows of this rank, flattened.

    Args:
        packed: (tokens,), all sequences concatenated.
        micro_batch: verl's, with nested input_ids.
        data_format: `thd`, packed sequences each padded to the parallel sizes, or `bshd`, one padded row per sequence.
    """
    from verl.models.mcore.util import preprocess_bshd_engine, preprocess_thd_engine

    nested = torch.nested.nested_tensor_from_jagged(packed, micro_batch["input_ids"].offsets().to(packed.device))
    if data_format == "thd":
        return preprocess_thd_engine(nested, pre_process=True)[0].flatten()
    longest = tu.get_non_tensor_data(micro_batch, key="forced_max_seqlen", default=None)
    return preprocess_bshd_engine(nested, pre_process=True, forced_max_seqlen=longest)[0].flatten()


def vocabulary_shard(student_ids: int, teacher_ids: int) -> VocabularyShard:
    """Return this tensor-parallel rank's shard of vocabularies that Megatron divides evenly, each padded separately.

    Args:
        student_ids, teacher_ids: number of logits columns on this rank.
    """
    from megatron.core import parallel_state

    rank = parallel_state.get_tensor_model_parallel_rank()
    group = parallel_state.get_tensor_model_parallel_group()
    return VocabularyShard(group, rank * student_ids, rank * teacher_ids)
