"""The warmup's loss and gradient through verl's engine equal plain transformers', however the batch is cut."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from tests.support.paths import ROOT
from tests.support.ranks import flash_on_cpu
from tests.support.tiny import WORDS, write_model
from tests.support.top_k_reference import definition
from verl_s2d.platforms.environment import cpu_environment
from verl_s2d.sampling import likely_tokens
from verl_s2d.sampling.likely_tokens import LikelyTokens
from verl_s2d.stages.warmup.rollout_dataset import COLUMNS

ULYSSES = [
    "engine.ulysses_sequence_parallel_size=2",
    f"model.override_config.attn_implementation={flash_on_cpu.NAME}",
]
PACKED = "model.use_remove_padding=true"
CASES = {
    "one micro-batch": (1, ["data.micro_batch_size_per_gpu=8", PACKED]),
    "micro-batches of two": (1, ["data.micro_batch_size_per_gpu=2", PACKED]),
    "micro-batches by tokens": (1, ["data.use_dynamic_bsz=true", "data.max_token_len_per_gpu=24", PACKED]),
    "compiled": (1, ["data.micro_batch_size_per_gpu=4", "engine.use_torch_compile=true", PACKED]),
    # As the CPU overlay has it.
    "padded": (1, ["data.micro_batch_size_per_gpu=4"]),
    "padded, micro-batches by tokens": (1, ["data.use_dynamic_bsz=true", "data.max_token_len_per_gpu=24"]),
    "padded, from logits": (1, ["data.micro_batch_size_per_gpu=4", "s2d.materialise_logits=true"]),
    "from logits": (1, ["data.micro_batch_size_per_gpu=2", "s2d.materialise_logits=true", PACKED]),
    "two data-parallel ranks": (2, ["data.micro_batch_size_per_gpu=2", PACKED]),
    "two data-parallel ranks, by tokens": (2, ["data.use_dynamic_bsz=true", "data.max_token_len_per_gpu=24", PACKED]),
    "two sequence-parallel ranks": (2, ["data.micro_batch_size_per_gpu=4", *ULYSSES, PACKED]),
    "two sequence-parallel ranks, from logits": (
        2,
        ["data.micro_batch_size_per_gpu=4", *ULYSSES, "s2d.materialise_logits=true", PACKED],
    ),
}
# Each starts a process a rank that imports verl. These are left to `--all`: others cut a batch or read logits alike.
SLOW = ("one micro-batch", "padded", "padded, from logits", "two sequence-parallel ranks, from logits")
LORA = ["model.lora_rank=4", "model.lora_alpha=6"]
# FSDP2 shards an output embedding of its own by itself, and one that is the input embedding too with the rest.
HEADS = ("student", "tied-student")
TRAINED_AND_TEACHER = ("student", "teacher")


@pytest.fixture(scope="module")
def reference(cached):
    return cache(lambda student: plain_step(cached, student))


def plain_step(
    cached: Path, student_name: str, adapters: dict[str, torch.Tensor] | None = None
) -> tuple[float, dict[str, torch.Tensor]]:
    """Token-mean forward KL over the whole batch, one sequence at a time, by plain transformers in float64.

    Args:
        adapters: values of LoRA's parameters, which alone are then trained (LORA).
    """
    from transformers import AutoModelForCausalLM

    student = AutoModelForCausalLM.from_pretrained(cached / student_name, dtype=torch.float64)
    if adapters is not None:
        student = get_peft_model(student, LoraConfig(r=4, lora_alpha=6, target_modules="all-linear"))
        result = student.load_state_dict({n: a.double() for n, a in adapters.items()}, strict=False)
        assert not result.unexpected_keys
    teacher = AutoModelForCausalLM.from_pretrained(cached / "teacher", dtype=torch.float64)
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for row in pq.read_table(cached / "rollouts.parquet").to_pylist():
        ids = torch.tensor([row["prompt_ids"] + row["response_ids"]])
        predicts = slice(len(row["prompt_ids"]) - 1, ids.shape[1] - 1)
        with torch.no_grad():
            log_t = teacher(ids).logits[0, predicts].log_softmax(-1)
        log_s = student(ids).logits[0, predicts].log_softmax(-1)
        total = total + (log_t.exp() * (log_t - log_s)).sum()
        tokens += len(row["response_ids"])
    loss = total / tokens
    loss.backward()
    return loss.item(), {n: parameter.grad for n, parameter in student.named_parameters() if parameter.requires_grad}


class RankFailed(Exception):
    """Carries the output of the first rank that failed."""


def stored_step(cached: Path, k: int, objective: str, file: Path) -> tuple[float, dict[str, torch.Tensor]]:
    """Store the teacher's k likely tokens beside the rollouts, in `file`; the loss and gradients of the definition."""
    from transformers import AutoModelForCausalLM

    student, teacher = (
        AutoModelForCausalLM.from_pretrained(cached / n, dtype=torch.float64) for n in TRAINED_AND_TEACHER
    )
    rows, likely, values = pq.read_table(cached / "rollouts.parquet").to_pylist(), [], []
    for row in rows:
        ids = torch.tensor([row["prompt_ids"] + row["response_ids"]])
        predicts = slice(len(row["prompt_ids"]) - 1, ids.shape[1] - 1)
        with torch.no_grad():
            best = teacher(ids).logits[0, predicts].log_softmax(-1).topk(k)
        likely.append(LikelyTokens(best.indices.int().numpy(), best.values.float().numpy()))
        values.append(definition(student(ids).logits[0, predicts], best.indices, best.values, "bucket", objective))
    table = pa.table({name: pa.array([row[name] for row in rows], pa.list_(pa.int32())) for name in COLUMNS})
    for name, column in likely_tokens.columns(likely).items():
        table = table.append_column(name, column)
    pq.write_table(table, file)
    loss = torch.cat(values).mean()
    loss.backward()
    return loss.item(), {name: parameter.grad for name, parameter in student.named_parameters()}


def run_step(
    cached: Path,
    out: Path,
    ranks: int,
    overrides: list[str],
    *,
    student: str = "student",
    teacher: str = "teacher",
    rollouts: Path | None = None,
) -> dict:
    """One step on `ranks` gloo ranks; what rank 0 recorded."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "tests.support.ranks.warmup_gradients",
        *(str(cached / n) for n in (student, teacher)),
    ]
    command += [str(rollouts or cached / "rollouts.parquet"), str(out), *overrides]
    shared = os.environ | cpu_environment() | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(ranks)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    if any(process.returncode for process in processes):
        raise RankFailed(outputs[0])
    return torch.load(out, weights_only=False)


@pytest.mark.parametrize(
    ("student", "case"),
    [
        *(pytest.param(HEADS[0], case, marks=[pytest.mark.slow] * (case in SLOW)) for case in CASES),
        (HEADS[1], "two data-parallel ranks"),
    ],
)
def test_loss_and_gradient_equal_plain_transformers(student, case, cached, reference, tmp_path):
    loss, gradients = reference(student)
    step = run_step(cached, tmp_path / "step.pt", *CASES[case], student=student)
    assert step["metrics"]["loss"] == pytest.approx(loss, rel=1e-5)
    assert step["metrics"]["train/forward_kl"] == pytest.approx(loss, rel=1e-5)
    assert step["metrics"]["train/teacher_scored_tokens"] == sum(
        len(row["response_ids"]) for row in pq.read_table(cached / "rollouts.parquet").to_pylist()
    )
    assert set(step["gradients"]) == set(step["updated"]) == set(gradients)
    # What the output embedding gave in a step: logits, or a few numbers per token.
    vocabulary = step["gradients"]["model.embed_tokens.weight"].shape[0]
    assert (vocabulary in step["widths"]) == ("from logits" in case), step["widths"]
    assert (step["compiled"] > 0) == (case == "compiled")
    assert relative_difference(step["gradients"], gradients) < 1e-5


@pytest.mark.parametrize(("student", "ranks"), [(HEADS[0], 2), pytest.param(HEADS[1], 1, marks=pytest.mark.slow)])
def test_with_lora_only_the_adapters_have_a_gradient_and_it_is_that_of_peft(student, ranks, cached, tmp_path):
    step = run_step(cached, tmp_path / "step.pt", ranks, ["data.micro_batch_size_per_gpu=2", *LORA], student=student)
    loss, gradients = plain_step(cached, student, step["adapters"])
    assert step["metrics"]["loss"] == pytest.approx(loss, rel=1e-5)
    assert set(step["gradients"]) == set(step["updated"]) == set(step["adapters"]) == set(gradients)
    assert len(gradients) == 2 * 7 * 2 and all(".lora_" in name for name in gradients)
    assert all(gradient.abs().max() > 0 for gradient in gradients.values())
    assert relative_difference(step["gradients"], gradients) < 1e-5
    # The output embedding is frozen: no gradient was made for it, and no logits.
    assert step["wanted"] == {(True, False, False)}
    assert len(WORDS) not in step["widths"]


@pytest.mark.parametrize(
    ("k", "objective", "case"),
    [
        (5, "forward_kl", "micro-batches of two"),
        (5, "reverse_kl", "two data-parallel ranks"),
        pytest.param(5, "reverse_kl", "padded", marks=pytest.mark.slow),
        pytest.param(5, "forward_kl", "from logits", marks=pytest.mark.slow),
        pytest.param(5, "forward_kl", "two sequence-parallel ranks", marks=pytest.mark.slow),
        # Every token is known: the exact divergence.
        pytest.param(len(WORDS), "forward_kl", "micro-batches by tokens", marks=pytest.mark.slow),
    ],
)
def test_a_stored_top_k_trains_without_a_teacher(k, objective, case, cached, reference, tmp_path):
    loss, gradients = stored_step(cached, k, objective, tmp_path / "rollouts.parquet")
    ranks, overrides = CASES[case]
    signal = ["+s2d.signal.type=top_k", f"+s2d.signal.k={k}", f"+s2d.signal.objective={objective}"]
    step = run_step(
        cached,
        tmp_path / "step.pt",
        ranks,
        [*overrides, *signal, "s2d.teacher.path=null"],
        rollouts=tmp_path / "rollouts.parquet",
    )
    for name in ("loss", f"train/{objective}"):
        assert step["metrics"][name] == pytest.approx(loss, rel=1e-5)
    assert relative_difference(step["gradients"], gradients) < 1e-5
    assert 0 < step["metrics"]["train/student_mass_on_teacher_top"] <= 1
    vocabulary = step["gradients"]["model.embed_tokens.weight"].shape[0]
    assert (vocabulary in step["widths"]) == ("from logits" in case), step["widths"]
    if k == len(WORDS):
        exact, of_exact = reference("student")
        assert loss == pytest.approx(exact, rel=1e-5) and relative_difference(step["gradients"], of_exact) < 1e-5


def relative_difference(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> torch.Tensor:
    difference = sum((found[name] - gradient).square().sum() for name, gradient in expected.items()).sqrt()
    return difference / sum(gradient.square().sum() for gradient in expected.values()).sqrt()


def test_a_teacher_equal_to_the_student_teaches_nothing(cached, tmp_path):
    step = run_step(cached, tmp_path / "step.pt", 1, ["data.micro_batch_size_per_gpu=8"], teacher="student")
    assert abs(step["metrics"]["train/forward_kl"]) < 1e-6
    assert all(g.abs().max() < 1e-6 for g in step["gradients"].values())


def test_an_update_that_is_not_finite_is_left_out_and_counted_until_the_limit(cached, tmp_path):
    broken = write_model(tmp_path / "student", seed=0)
    weights = load_file(broken / "model.safetensors")
    weights["lm_head.weight"][3, 2] = torch.nan
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    batch = "data.micro_batch_size_per_gpu=8"
    step = run_step(cached, tmp_path / "step.pt", 1, [batch, "s2d.skip_limit=2"], student=str(broken))
    assert step["metrics"]["train/skipped_updates"] == 1
    assert step["updated"] == []
    with pytest.raises(RankFailed, match=r"NotFiniteError: 1 updates in a row .* raise s2d.skip_limit \(now 1\)"):
        run_step(cached, tmp_path / "step.pt", 1, [batch, "s2d.skip_limit=1"], student=str(broken))
