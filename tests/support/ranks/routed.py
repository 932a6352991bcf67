"""Exact signals with a teacher for each data source, in verl's engine: one rank of a group.

python -m tests.support.ranks.routed RANK WORLD DIRECTORY

DIRECTORY has the models `student`, `tied-student` and `teacher`, and rollouts.parquet.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial

import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from verl.utils import tensordict_utils as tu
from verl.utils.metric import Metric

from tests.support.ranks.group import work
from tests.support.ranks.worker import BATCH, CUTS, KEEP, close, definition, directory, network
from tests.support.tiny import WORDS
from verl_s2d.gpu_check.engine_step import batch_of, opd_workers, record_steps, step_configuration, warmup_worker
from verl_s2d.gpu_check.plain_step import relative_difference
from verl_s2d.stages.warmup.config_checks import read_warmup_settings
from verl_s2d.stages.warmup.rollout_dataset import CachedRollouts

SOURCES = {
    "alternating": ["a", "b"] * 4,
    "mostly one": ["b"] * 7 + ["a"],
    # With two ranks, neither has a rollout of the other's teacher.
    "one a rank": ["a"] * 4 + ["b"] * 4,
}
TEACHERS = {"a": "teacher", "b": "tied-student"}


def engine_step(
    sources: list[str], teachers: dict[str, str], overrides: list[str], stage: str
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Metrics and gradients of a step; with `teachers` empty, of one teacher for all."""
    cache = directory() / f"routed-{dist.get_rank()}.parquet"
    table = pq.read_table(directory() / "rollouts.parquet")
    pq.write_table(table.append_column("data_source", [sources]), cache)
    keys = [f"+s2d.models.of_{source}.path={directory() / name}" for source, name in teachers.items()]
    keys += [f"+s2d.models.of_{source}.serves=[{source}]" for source in teachers]
    config = step_configuration(
        directory() / "student",
        "null" if teachers else directory() / "teacher",
        cache,
        on_cpu=True,
        overrides=["s2d.chunk_tokens=3", "model.use_remove_padding=true", *keys, *overrides],
    )
    rollouts = CachedRollouts(str(cache), router=read_warmup_settings(config.s2d).router)
    worker = warmup_worker(config, rollouts) if stage == "2a" else opd_workers(config, len(WORDS))[0]
    step = record_steps(worker)
    part = BATCH // worker.engine.get_data_parallel_size()
    mine = range(BATCH)[worker.engine.get_data_parallel_rank() * part :][:part]
    output = worker.train_batch(batch_of(config, rollouts, mine, total=BATCH))
    metrics = [None if output is None else {k: _number(v) for k, v in dict(tu.get(output, "metrics")).items()}]
    dist.broadcast_object_list(metrics, 0)
    return metrics[0], step.gradients


def _number(value: object) -> float:
    if isinstance(value, list) and isinstance(value[0], Metric):
        return Metric.aggregate_dp(value)
    return value.aggregate() if isinstance(value, Metric) else value


def plain_step(sources: list[str], objective: str) -> tuple[float, dict[str, torch.Tensor], dict[str, float]]:
    """Loss, gradients and the mean of each teacher's tokens, one sequence at a time, in float64."""
    model = network("student")
    model.zero_grad()
    losses: dict[str, list[torch.Tensor]] = {source: [] for source in TEACHERS}
    for row, source in zip(CachedRollouts(str(directory() / "rollouts.parquet")), sources, strict=True):
        ids, begin = row["input_ids"][None], int((~row["loss_mask"].bool()).sum()) - 1
        with torch.no_grad():
            log_t = network(TEACHERS[source])(ids).logits[0, begin:-1].log_softmax(-1)
        log_s = model(ids).logits[0, begin:-1].log_softmax(-1)
        losses[source].append(definition(log_s, log_t, objective))
    each = {source: torch.cat(rows) for source, rows in losses.items()}
    loss = torch.cat(list(each.values())).mean()
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    return loss.item(), gradients, {source: values.mean().item() for source, values in each.items()}


def routed(rank: int, world: int, sources: str, cut: str, stage: str) -> None:
    """Each rollout is compared with its own teacher, however ranks and micro-batches divide the batch."""
    objective = "forward_kl" if stage == "2a" else "reverse_kl"
    signal = f"+s2d.signal.type={objective}"
    metrics, found = engine_step(SOURCES[sources], TEACHERS, [signal, *CUTS[cut]], stage)
    loss, expected, means = plain_step(SOURCES[sources], objective)
    close(metrics["loss"], loss)
    difference = relative_difference(found, expected)
    assert difference < 1e-5, difference
    if stage == "2a":
        assert {name for name in metrics if name.startswith("train/of_")} == {
            f"train/of_{source}/{name}" for source in TEACHERS for name in (objective, "teacher_entropy")
        }
    for source, mean in means.items():
        if stage == "2a":
            close(metrics[f"train/of_{source}/{objective}"], mean)
        else:
            close(metrics[f"actor/of_{source}/{objective}"] / metrics[f"actor/of_{source}/weight"], mean)


def identical(rank: int, world: int, cut: str, more: list[str]) -> None:
    """Equal checkpoints are one teacher, to the bit."""
    same = dict.fromkeys(TEACHERS, "teacher")
    several, found = engine_step(SOURCES["alternating"], same, [*more, *CUTS[cut]], "2a")
    one, expected = engine_step(SOURCES["alternating"], {}, [*more, *CUTS[cut]], "2a")
    assert several["loss"] == one["loss"] and found.keys() == expected.keys()
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())


def kept(rank: int, world: int, cut: str) -> None:
    """TIP's ranges and its choice are the whole batch's, over all teachers: as when nothing is cut."""
    tip = ["+s2d.signal.type=reverse_kl", f"+s2d.signal.keep_tokens={KEEP}"]
    whole = [f"data.micro_batch_size_per_gpu={BATCH // world}"]
    metrics, found = engine_step(SOURCES["alternating"], TEACHERS, [*tip, *whole], "2b")
    again, gradients = engine_step(SOURCES["alternating"], TEACHERS, [*tip, *CUTS[cut]], "2b")
    close(again["loss"], metrics["loss"])
    assert relative_difference(gradients, found) + 1 > 0 and relative_difference(gradients, found) < 1e-5


def cases(world: int) -> dict[str, Callable[[int, int], None]]:
    """Name -> what to run on every rank, in this order."""
    found = {}
    for sources, cut, stage in (
        ("alternating", "two rollouts", "2a"),
        ("alternating", "by tokens, padded", "2b"),
        ("mostly one", "one rollout", "2b"),
        ("one a rank", "four rollouts", "2a"),
        ("one a rank", "from logits", "2b"),
    ):
        found[f"{sources}, micro-batches of {cut}, {stage}"] = partial(routed, sources=sources, cut=cut, stage=stage)
    found["identical teachers"] = partial(identical, cut="two rollouts", more=[])
    found["kept tokens"] = partial(kept, cut="one rollout")
    return found


if __name__ == "__main__":
    rank, world = sys.argv[1:3]
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    work(cases)
