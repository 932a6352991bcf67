"""Check that batches divide among data-parallel ranks; verl asserts most of it only in its workers.

An engine's data-parallel ranks get equal parts of a step's and of a mini-batch's sequences, and split them into equal
micro-batches. verl's start-up check differs: with FSDP it divides a step's sequences by all GPUs.
"""

from __future__ import annotations

from collections.abc import Iterable

from verl_s2d.errors import UserError
from verl_s2d.stages.shared.batch_settings import MINI, TRAIN, N
from verl_s2d.verl_settings.stage_sizes import Engine, MicroBatch


def check_batches(
    name: str,
    actor: Engine,
    batch: int,
    mini_batch: int,
    update: MicroBatch,
    scored: Iterable[tuple[MicroBatch, Engine]] = (),
    *,
    warmup: bool = False,
) -> None:
    """Check the batches of a training stage.

    Args:
        name: name of the stage.
        batch, mini_batch: sequences of a step and of an update; equal in the warmup.
        scored: (micro-batch, engine) of each computation of log-probabilities over a step.

    Raises:
        UserError: the first size that does not divide.
    """
    ranks, times = actor.data_parallel, "" if warmup else f" x {N}"
    for key, sequences in ((TRAIN if warmup else MINI, mini_batch), (TRAIN, batch)):
        if sequences % ranks:
            raise UserError(
                f"{name}: {sequences} sequences{'' if warmup else ' (with all rollouts of a prompt)'} do not divide "
                f"among {_among(actor)}.",
                key=key,
                value=sequences,
                remedy=f"Make {key}{times} a multiple of {ranks}.",
            )
    _require_micro_batches(name, "a mini-batch", mini_batch, update, actor)
    if update.sequences and not warmup and actor.backend == "fsdp" and batch % actor.world:
        raise UserError(
            f"{name}: verl wants the {batch} sequences of a step to divide among all {actor.world} GPUs, also where "
            "several work on one sequence.",
            key=TRAIN,
            value=batch,
            remedy=f"Make {TRAIN}{times} a multiple of {actor.world}, or use dynamic batches (use_dynamic_bsz).",
        )
    for micro, engine in scored:
        _require_micro_batches(name, "a step", batch, micro, engine)


def _require_micro_batches(name: str, what: str, sequences: int, micro: MicroBatch, engine: Engine) -> None:
    share = sequences // engine.data_parallel
    if micro.sequences and share % micro.sequences:
        raise UserError(
            f"{name}: {share} sequences of {what} on each of {_among(engine)} are not a whole number of micro-batches.",
            key=micro.key,
            value=micro.sequences,
            remedy=f"Choose a divisor of {share}, or use dynamic batches (use_dynamic_bsz).",
        )


def _among(engine: Engine) -> str:
    ranks = f"{engine.data_parallel} data-parallel ranks"
    return ranks if engine.model_parallel == 1 else f"{ranks} ({engine.world} GPUs / {engine.model_parallel} a model)"
