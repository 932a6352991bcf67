"""Check part `engines`: steps of 2a and 2b in verl's engine on one device, against plain transformers in float32."""

from __future__ import annotations

import gc
import os
import socket
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import AutoConfig, AutoTokenizer
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_name, get_torch_device

from verl_s2d.gpu_check import engine_step, part_models
from verl_s2d.gpu_check.figures import Recorder
from verl_s2d.gpu_check.part_settings import Settings
from verl_s2d.gpu_check.plain_step import plain_step, relative_difference
from verl_s2d.stages.warmup.rollout_dataset import CachedRollouts
from verl_s2d.teachers.model_pair import real_vocabulary

GIB = 2**30
_LORA = ["model.lora_rank=4", "model.lora_alpha=6"]
_BF16 = ["++engine.mixed_precision.param_dtype=bf16", "++engine.mixed_precision.reduce_dtype=fp32"]
_FSDP1 = "engine.strategy=fsdp"
_OFFLOAD = ["engine.param_offload=true", "engine.optimizer_offload=true"]
_FLOAT32, _BFLOAT16, _REAL_WEIGHTS = 1e-4, 2e-2, 1e-1
"""Relative limits of loss and gradient. bf16 rounds each product to three digits; its effect over many layers of real
weights is not known beforehand, so the last limit only finds gross errors."""
_SAME_MODEL = {"fp32": 1e-4, "bf16": 0.1}
"""Limit on |log pi(actor) - log pi(ref)| for 99.9 % of the tokens, with one model in different micro-batches."""


@dataclass(frozen=True)
class Case:
    """One step to check.

    Attributes:
        stage: 2a or 2b.
        tied: input and output embedding are shared.
        overrides: overrides of the warmup's configuration.
    """

    name: str
    stage: str
    precision: str
    tied: bool = False
    overrides: tuple[str, ...] = ()


def cases(settings: Settings) -> list[Case]:
    """List the cases: untied, tied and LoRA in both stages; on a GPU in bf16, also with offload and on FSDP1."""
    lora, precision = tuple(_LORA), "fp32" if settings.on_cpu else "bf16"
    found = [Case("2a untied", "2a", precision), Case("2b untied", "2b", precision)]
    found += [Case("2a LoRA", "2a", precision, overrides=lora), Case("2b LoRA", "2b", precision, overrides=lora)]
    if settings.model is None:
        found += [Case("2a tied", "2a", precision, tied=True), Case("2b tied", "2b", precision, tied=True)]
    if settings.on_cpu:
        return [*found, Case("2a untied, bf16", "2a", "bf16"), Case("2b untied, bf16", "2b", "bf16")]
    offload = tuple(_OFFLOAD)
    found += [Case("2a offloaded", "2a", precision, overrides=offload)]
    return [*found, Case("2a FSDP1", "2a", precision, overrides=(_FSDP1,))]


def run(settings: Settings, record: Recorder) -> None:
    """Run every case in this process; a case that raises is a failed check, and the next one runs."""
    _be_the_only_rank()
    cache = _write_rollouts(settings)
    peaks: dict[str, float] = {}
    for case in cases(settings):
        _attempt(record, case.name, lambda case=case: peaks.update({case.name: _step(settings, record, case, cache)}))
        _forget()
    if "2a offloaded" in peaks and "2a untied" in peaks:
        resident = peaks["2a untied"]
        record.expect(
            "offloaded peak",
            peaks["2a offloaded"] <= resident,
            f"{peaks['2a offloaded']:.3g} GiB",
            f"<= {resident:.3g} GiB, with everything resident",
        )
    precision = "fp32" if settings.on_cpu else "bf16"
    _attempt(record, "actor and reference", lambda: _same_model(settings, record, cache, precision))
    if settings.on_cpu:
        record.skip("offload, FSDP1", "need a GPU")


def _attempt(record: Recorder, name: str, act: Callable[[], None]) -> None:
    try:
        act()
    except Exception as error:
        traceback.print_exc()
        record.expect(name, False, f"{type(error).__name__}: {error}"[:1000], "runs")


def _step(settings: Settings, record: Recorder, case: Case, cache: Path) -> float:
    """Check loss and gradient of one case; returns the peak of the device's memory in GiB."""
    student, teacher, size = _pair(settings, case.tied)
    rollouts = CachedRollouts(str(cache))
    config = engine_step.step_configuration(
        student, teacher, cache, on_cpu=settings.on_cpu, overrides=_overrides(settings, case)
    )
    objective = "forward_kl" if case.stage == "2a" else "reverse_kl"
    if case.stage == "2a":
        worker = engine_step.warmup_worker(config, rollouts)
    else:
        worker, _ = engine_step.opd_workers(config, size)
    engine_step.fill_adapters(worker.engine.module)
    recorded = engine_step.record_steps(worker)
    device = get_torch_device()
    device.reset_peak_memory_stats()
    began = time.monotonic()
    output = worker.train_batch(engine_step.batch_of(config, rollouts, range(len(rollouts)), total=len(rollouts)))
    seconds, peak = time.monotonic() - began, device.max_memory_allocated() / GIB
    metrics = dict(tu.get(output, "metrics"))
    del worker
    _forget()
    loss, gradients = plain_step(
        student,
        teacher,
        [rollouts[i] for i in range(len(rollouts))],
        objective=objective,
        vocab_size=size,
        device=get_device_name(),
        lora=recorded.adapters,
    )
    limit = _FLOAT32 if case.precision == "fp32" else _REAL_WEIGHTS if settings.model else _BFLOAT16
    record.at_most(f"{case.name}: loss", abs(metrics["loss"] - loss) / abs(loss), limit)
    if _FSDP1 not in case.overrides:
        record.at_most(f"{case.name}: gradient", relative_difference(recorded.gradients, gradients), limit)
        missing = set(gradients) - set(recorded.updated)
        record.expect(f"{case.name}: update", not missing, f"{len(recorded.updated)} parameters", "all trained ones")
    else:
        # FSDP1 keeps one flat parameter per layer, so gradients have no parameter names.
        norm = sum(g.float().square().sum().item() for g in gradients.values()) ** 0.5
        record.at_most(f"{case.name}: gradient norm", abs(metrics["grad_norm"] - norm) / norm, limit)
    record.figure(f"{case.name}: first step", seconds, "s")
    if not settings.on_cpu:
        record.figure(f"{case.name}: peak memory", peak, "GiB")
    return peak


def _same_model(settings: Settings, record: Recorder, cache: Path, precision: str) -> None:
    """Compare log-probabilities of the trained and the frozen engine on one checkpoint, in different micro-batches."""
    student, _, size = _pair(settings, False)
    rollouts = CachedRollouts(str(cache))
    case = Case("same", "2b", precision)
    config = engine_step.step_configuration(
        student, student, cache, on_cpu=settings.on_cpu, overrides=_overrides(settings, case)
    )
    actor, frozen = engine_step.opd_workers(config, size)
    values = []
    for worker, tokens in ((actor, 2 * rollouts.longest), (frozen["teacher"], 4 * rollouts.longest)):
        batch = engine_step.batch_of(config, rollouts, range(len(rollouts)), total=len(rollouts))
        tu.assign_non_tensor(batch, use_dynamic_bsz=True, max_token_len_per_gpu=tokens, compute_loss=False)
        values.append(tu.get(worker.infer_batch(batch), "log_probs").values().float())
    # A sequence's last row would predict the next sequence's first token, a prompt token, so it does not count.
    predicts = torch.roll(batch["loss_mask"].values(), -1).bool()
    difference = (values[0] - values[1])[predicts].abs()
    limit = _SAME_MODEL[precision]
    p999 = torch.quantile(difference, 0.999).item()
    record.at_most("actor and reference, one model: p99.9 of |log-prob difference|", p999, limit)
    record.figure("actor and reference, one model: largest |log-prob difference|", difference.max().item())


def _overrides(settings: Settings, case: Case) -> list[str]:
    """Return overrides for packed sequences, and for several micro-batches by tokens."""
    tokens = _lengths(settings)[2]
    overrides = ["model.use_remove_padding=true", "data.use_dynamic_bsz=true", f"data.max_token_len_per_gpu={tokens}"]
    overrides += [] if case.precision == "fp32" else _BF16
    overrides += ["+s2d.signal.type=reverse_kl"] if case.stage == "2b" else []
    return [*overrides, *case.overrides]


def _pair(settings: Settings, tied: bool) -> tuple[Path, Path, int]:
    """Return student, teacher and the shared vocabulary's size. A random teacher always differs from the student."""
    student = part_models.student(settings, tied=tied)
    tokenizer, config = AutoTokenizer.from_pretrained(student), AutoConfig.from_pretrained(student)
    teacher = part_models.random_teacher(settings, config.get_text_config().vocab_size, len(tokenizer))
    return student, teacher, real_vocabulary(tokenizer, config, AutoConfig.from_pretrained(teacher))


def _lengths(settings: Settings) -> tuple[int, int, int]:
    """Return the shortest and longest sequence, and the tokens of a micro-batch."""
    return (4, 15, 24) if settings.on_cpu else (100, 700, 1500)


def _write_rollouts(settings: Settings) -> Path:
    """Write eight rollouts of random ids with different lengths."""
    shortest, longest, _ = _lengths(settings)
    student, _, size = _pair(settings, False)
    end = AutoConfig.from_pretrained(student).get_text_config().eos_token_id
    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        return torch.randint(3, size, (count,), generator=generator).tolist()

    rows = []
    for number in range(8):
        prompt = shortest // 2 + number % 3
        response = shortest // 2 + (longest - shortest) * (number % 4) // 3 - number % 3
        last = end[0] if isinstance(end, list) else end
        rows.append({"prompt_ids": ids(prompt), "response_ids": [*ids(max(1, response)), last]})
    path = settings.scratch / "engine-rollouts.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def _be_the_only_rank() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    os.environ.update(alone | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})


def _forget() -> None:
    """Free the last engines' memory, or the next case's peak would include it."""
    gc.collect()
    get_torch_device().empty_cache()
