"""Adapt to verl's Megatron engine: logits sharded by ids, tokens laid out for parallel ranks.

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
    """Megatron's engine holds a list of model chunks, one per virtual pipeline stage; the others one module."""
    return isinstance(engine.module, list)


def is_pipelined() -> bool:
    """Report whether the layers of Megatron's models here are divided among ranks."""
    from megatron.core import parallel_state

    return parallel_state.get_pipeline_model_parallel_world_size() > 1


def forward(engine: BaseEngine, micro_batch: TensorDict, processor: Callable[..., Any]) -> None:
    """One micro-batch through the one pipeline stage there is, without Megatron's schedule around it."""
    engine.forward_step(iter([micro_batch]), engine.module[0], processor, _ignored)


def _ignored(*_: Any, **__: Any) -> None:
    """Stands where a schedule would reduce the output to a loss."""


def in_sharded_layout(packed: torch.Tensor, micro_batch: TensorDict, data_format: str) -> torch.Tensor:
    """Packed numbers as those of the logits rows that this rank has, flattened.

    Args:
        packed: (tokens,), all sequences one after the other.
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
    """This tensor-parallel rank's part of vocabularies that Megatron divides evenly, each with its own padding.

    Args:
        student_ids, teacher_ids: columns of the logits here.
    """
    from megatron.core import parallel_state

    rank = parallel_state.get_tensor_model_parallel_rank()
    group = parallel_state.get_tensor_model_parallel_group()
    return VocabularyShard(group, rank * student_ids, rank * teacher_ids)
