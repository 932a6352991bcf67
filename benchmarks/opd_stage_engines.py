"""Measure the engines of benchmarks.opd_stage in one process: models, batches, updates, clocks, memory.

    python -m benchmarks.opd_stage_engines MODELS CASE PASS REPEATS THREADS OUT

PASS is `models`, which writes them to the directory MODELS, `time`, or an update whose memory is measured. The result
goes to OUT as JSON, because verl writes to standard output and error.
"""

from __future__ import annotations

import ctypes
import gc
import json
import math
import os
import socket
import statistics
import sys
import time
from pathlib import Path

import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf, open_dict
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.workers.engine_workers import ActorRolloutRefWorker

from benchmarks.opd_stage import BODY, CASES, CHUNKED, MODELS, OURS, TEACHER, TIME, VERL, Case
from tests.support.tiny import WORDS, write_tokenizer
from verl_s2d.objectives.logits import LinearLogits
from verl_s2d.stages.opd.config import read_opd_config
from verl_s2d.stages.opd.worker import StudentTeacherWorker
from verl_s2d.teachers.frozen_teacher import FrozenTeacher
from verl_s2d.teachers.lm_head_hook import HeadSeam
from verl_s2d.verl_settings.overrides import hydra_arguments, merge, overlay

# The teacher's head works on so many tokens at a time when verl's rows are made: no logits as a whole.
_CHUNK_TOKENS = 256
_NATIVE = {
    "distillation.enabled": True,
    "distillation.n_gpus_per_node": 1,
    "distillation.nnodes": 1,
    "distillation.teacher_models.teacher_model.inference.tensor_model_parallel_size": 1,
    "distillation.distillation_loss.loss_mode": "forward_kl_topk",
    "distillation.distillation_loss.use_task_rewards": False,
}


def write_models(case: Case, directory: Path) -> None:
    """Checkpoints `student` and `teacher` of random weights, with logits of a standard deviation of about 2."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    words = [*WORDS[:5], *map(str, range(case.words - 5))]
    for seed, (name, shape) in enumerate((("student", case.student), ("teacher", case.teacher))):
        torch.manual_seed(seed)
        config = Qwen3Config(
            vocab_size=case.vocabulary,
            hidden_size=shape.hidden,
            intermediate_size=3 * shape.hidden,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads,
            head_dim=32,
            max_position_embeddings=256,
            tie_word_embeddings=shape.tied,
            initializer_range=2 / math.sqrt(shape.hidden),
            bos_token_id=None,
            eos_token_id=1,
            pad_token_id=0,
        )
        Qwen3ForCausalLM(config).float().save_pretrained(directory / name)
        write_tokenizer(directory / name, words)


class Rollouts:
    """Random prompts and responses of a case, as verl's update gets them."""

    def __init__(self, case: Case):
        generator = torch.Generator().manual_seed(0)

        def sequences(low: int, high: int) -> list[torch.Tensor]:
            lengths = torch.randint(low, high + 1, (case.rollouts,), generator=generator).tolist()
            return [torch.randint(5, case.words, (length,), generator=generator) for length in lengths]

        self._prompts, self._responses = sequences(*case.prompt), sequences(*case.response)
        self.response_tokens = sum(map(len, self._responses))
        # Row t of a packed batch predicts token t + 1.
        self.predicts = torch.roll(torch.cat([row for pair in self._masks() for row in pair]), -1).bool()

    def _masks(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(torch.zeros_like(p), torch.ones_like(r)) for p, r in zip(self._prompts, self._responses, strict=True)]

    def batch(self, rows: dict[str, torch.Tensor] | None = None) -> TensorDict:
        """A new batch; `rows` are (tokens, K) of its packed tokens. verl takes what it needs out of a batch."""
        count = len(self._prompts)
        whole = [torch.cat(pair) for pair in zip(self._prompts, self._responses, strict=True)]
        lengths = [len(sequence) for sequence in whole]
        tensors = {
            "prompts": self._prompts,
            "responses": self._responses,
            "response_mask": [torch.ones_like(response) for response in self._responses],
            "input_ids": whole,
            "position_ids": [torch.arange(length) for length in lengths],
            "loss_mask": [torch.cat(pair) for pair in self._masks()],
        } | {name: list(values.split(lengths)) for name, values in (rows or {}).items()}
        return tu.get_tensordict(
            {name: torch.nested.as_nested_tensor(each, layout=torch.jagged) for name, each in tensors.items()},
            {
                # As verl's V1 trainer sends them with an update whose only loss is a distillation on logits.
                "calculate_entropy": False,
                "distillation_use_topk": True,
                "distillation_only": True,
                "global_batch_size": count,
                "mini_batch_size": count,
                "epochs": 1,
                "seed": 0,
                "dataloader_kwargs": {"shuffle": False},
                "temperature": 1.0,
            },
        )


def verl_config(models: Path, case: Case, overrides: dict) -> DictConfig:
    """verl's configuration of stage 2b on a CPU: one update of one micro-batch."""
    chosen = {
        "actor_rollout_ref.model.path": str(models / "student"),
        "data.max_prompt_length": case.prompt[1],
        "data.max_response_length": case.response[1],
        "trainer.n_gpus_per_node": 1,
        "actor_rollout_ref.rollout.n": 1,
        "actor_rollout_ref.actor.ppo_mini_batch_size": case.rollouts,
        "actor_rollout_ref.actor.use_dynamic_bsz": False,
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": case.rollouts,
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu": case.rollouts,
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": case.rollouts,
    }
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", hydra_arguments(merge(overlay("opd"), overlay("cpu"), chosen, overrides)))
    OmegaConf.resolve(config)
    return config


class Updates:
    """Workers of one process, with the same rollouts. Each update is verl's own call, on a worker of its own."""

    def __init__(self, models: Path, case: Case, names: list[str]):
        self.rollouts = Rollouts(case)
        self._models, self._case = models, case
        self.workers: dict[str, ActorRolloutRefWorker] = {OURS: self._with_teacher()}
        self._teacher_engine = self.workers[OURS].ref.engine
        self._teacher = FrozenTeacher(self._teacher_engine, linear=True)
        self.workers |= {name: self._native(name) for name in names if name != OURS}
        self._rows: dict[str, torch.Tensor] = {}
        if len(self.workers) > 1:
            self.ask_teacher(self.batch(TEACHER))

    def _with_teacher(self) -> StudentTeacherWorker:
        teacher = {"+s2d.teacher.path": str(self._models / "teacher"), "+s2d.signal.type": "reverse_kl"}
        config = verl_config(self._models, self._case, teacher)
        with open_dict(config):
            config.actor_rollout_ref.s2d = read_opd_config(config).written()
        worker = StudentTeacherWorker(config.actor_rollout_ref, "actor")
        worker.role = "actor_ref"  # what to build: the two models, and no rollout engine beside them
        worker.init_model()
        return worker

    def _native(self, name: str) -> ActorRolloutRefWorker:
        """verl's own worker, with its distillation loss, or with a loss on the hidden states."""
        teacher = {"distillation.teacher_models.teacher_model.model_path": str(self._models / "teacher")}
        chunked = {"+distillation.distillation_loss.use_chunked_topk": True} if name == CHUNKED else {}
        config = verl_config(self._models, self._case, _NATIVE | teacher | chunked)
        self.top_k = config.distillation.distillation_loss.topk
        worker = ActorRolloutRefWorker(config.actor_rollout_ref, "actor", distillation_config=config.distillation)
        worker.init_model()
        if name == BODY:
            _leave_out_head(worker)
        return worker

    def batch(self, name: str) -> TensorDict:
        """Make the batch of the named update, or the teacher's."""
        return self.rollouts.batch(self._rows if name in (VERL, CHUNKED) else None)

    def ask_teacher(self, batch: TensorDict) -> None:
        """Keep, for verl, the teacher's top log-probs and ids (tokens, K) of the rows that predict a response."""
        rows = self.rollouts.predicts.nonzero().squeeze(-1)
        log_probs = torch.zeros(len(self.rollouts.predicts), self.top_k)
        ids = torch.zeros_like(log_probs, dtype=torch.int32)

        def top(teacher: LinearLogits) -> None:
            for part in rows.split(_CHUNK_TOKENS):
                logits = teacher.hidden[part] @ teacher.head.T
                values, indices = logits.topk(self.top_k)
                log_probs[part] = values - logits.logsumexp(-1, keepdim=True)
                ids[part] = indices.int()

        with self._teacher_engine.eval_mode():
            self._teacher.consult(batch, top)
        self._rows = {"teacher_logprobs": log_probs, "teacher_ids": ids}

    def run(self, name: str, batch: TensorDict) -> dict[str, float]:
        """An update on a batch of its own: loss and gradient norm.

        Raises:
            RuntimeError: they are not those of an update.
        """
        metrics = tu.get(self.workers[name].update_actor(batch), "metrics")
        found = {key: float(metrics[key][-1]) for key in ("loss", "grad_norm")}
        if not (math.isfinite(found["loss"]) and math.isfinite(found["grad_norm"]) and found["grad_norm"] > 0):
            raise RuntimeError(f"{name}: not an update: {found}")
        return found


def _leave_out_head(worker: ActorRolloutRefWorker) -> None:
    """Train on the mean of the last hidden states: no product with the output embedding."""

    def loss(*, student_logits=None, model_output=None, **_):
        if student_logits is not None:
            return {"means": student_logits.squeeze(-1)}
        return model_output["means"].values().mean(), {}

    engine = worker.actor.engine
    seam, step = HeadSeam(engine.module), engine.forward_step

    def forward_step(*arguments, **named):
        with seam.using(lambda hidden, weight, bias: hidden.mean(-1, keepdim=True)):
            return step(*arguments, **named)

    engine.forward_step = forward_step
    worker.set_loss_fn(loss)


def times(updates: Updates, names: list[str], repeats: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of each update, and of the teacher's pass for verl, by two clocks; rounds in alternating order."""
    found = {name: {"wall": [], "processor": []} for name in (*names, TEACHER)}
    for number in range(repeats + 1):
        for name in list(found)[:: -1 if number % 2 else 1]:
            batch = updates.batch(name)
            gc.collect()
            began = time.perf_counter(), time.process_time()
            if name == TEACHER:
                updates.ask_teacher(batch)
            else:
                updates.run(name, batch)
            if number:  # the first round warms up
                found[name]["wall"].append(time.perf_counter() - began[0])
                found[name]["processor"].append(time.process_time() - began[1])
    return found


def memory(updates: Updates, name: str, repeats: int) -> dict[str, float]:
    """Bytes by which the resident set grew at most, over what it was before, in forward and backward of an update."""
    engine = updates.workers[name].actor.engine
    original, grown = engine.forward_backward_batch, []

    def forward_backward_batch(*arguments, **named):
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
        before = _status("VmRSS")
        output = original(*arguments, **named)
        grown.append(_status("VmHWM") - before)
        return output

    engine.forward_backward_batch = forward_backward_batch
    for _ in range(repeats + 1):
        found = updates.run(name, updates.batch(name))
    return {"bytes": statistics.median(grown[1:]), "loss": found["loss"], "grad_norm": found["grad_norm"]}


def _status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


def main(models: str, case: str, what: str, repeats: str, threads: str, out: str) -> None:
    """Do one pass."""
    if what == MODELS:
        write_models(CASES[case], Path(models))
        Path(out).write_text("{}")
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    os.environ |= ranks | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(int(threads))
    names = [OURS, VERL, CHUNKED] if what == TIME else [what]
    updates = Updates(Path(models), CASES[case], names)
    if what == TIME:
        found = times(updates, names, int(repeats)) | {"response_tokens": updates.rollouts.response_tokens}
        found["tokens"], found["top_k"] = len(updates.rollouts.predicts), updates.top_k
    else:
        found = memory(updates, what, int(repeats))
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
