"""The stages of the row half-split with TRL's trainers, in the environment of requirements.txt.

    python -m benchmarks.trl_bridge.trl_stages PLAN.json OUT

| stage | TRL | divergence |
|---|---|---|
| 1 and 3 | GRPOTrainer | |
| 2a | GKDTrainer, lmbda=0 | beta=0: KL(teacher, student), the forward KL |
| 2b | DistillationTrainer | beta=1: KL(student, teacher), the reverse KL |

2a trains on given rollouts, which of TRL's distillation trainers only GKD does. For 2b DistillationTrainer is the one
that TRL recommends: GKD divides the loss of its own rollouts by the number of tokens of the data set's answers.
Samples are made by transformers' `generate`. Settings are the plan's; beyond it TRL's defaults, but for float32 and no
gradient checkpointing. Writes OUT/stages.json: for each stage when it began and ended, updates and tokens, and the
number of right samples of each problem.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase, Trainer, set_seed
from trl import DistillationConfig, DistillationTrainer, GRPOConfig, GRPOTrainer
from trl.experimental.gkd import GKDConfig, GKDTrainer

from benchmarks.trl_bridge.bridge_plan import BridgePlan, Sampling, Training
from benchmarks.trl_bridge.update_order import update_prompts
from verl_s2d.verifiers.reasoning_gym import compute_score

FORWARD_KL, REVERSE_KL = 0.0, 1.0
Rows = list[dict[str, Any]]


@dataclass
class StageRecord:
    """A stage: epoch seconds, updates, response tokens sampled (or, in 2a, trained on); problem -> right samples."""

    stage: str
    began: float
    ended: float = 0.0
    updates: int = 0
    tokens: int = 0
    correct: dict[str, int] = field(default_factory=dict)


class TrlStages:
    """The stages, each from a model directory to the next."""

    def __init__(self, plan: BridgePlan, out: Path):
        self.plan, self.out = plan, out
        self.records: list[StageRecord] = []
        self.tokenizer = _tokenizer(plan.inputs.student)

    def run(self) -> None:
        plan, inputs = self.plan, self.plan.inputs
        self.evaluate("teacher", inputs.teacher)
        self.evaluate("student", inputs.student)
        teacher = self.grpo("teacher_rl", inputs.teacher, inputs.first_half, plan.teacher_rl)
        self.evaluate("teacher_rl", teacher)
        warmed = self.warmup(inputs.student, teacher, self.rollouts(teacher))
        self.evaluate("warmup", warmed)
        bridged = self.opd(warmed, teacher)
        self.evaluate("opd", bridged)
        self.evaluate("student_rl", self.grpo("student_rl", bridged, inputs.second_half, plan.student_rl))

    def grpo(self, stage: str, model: str, problems: str, training: Training) -> str:
        """Stages 1 and 3."""

        def reward(completions: Sequence[str], data_source: list, ground_truth: list, entry: list, **_: Any) -> Any:
            columns = zip(completions, data_source, ground_truth, entry, strict=True)
            return [compute_score(source, text, truth, {"entry": e}) for text, source, truth, e in columns]

        with self._timed(stage) as record:
            more = self._on_policy(training) | {"num_generations": training.sampling.samples}
            trainer = GRPOTrainer(
                model=model,
                reward_funcs=reward,
                args=GRPOConfig(**self._arguments(stage, training), **more),
                train_dataset=Dataset.from_list(self._problems(problems)),
                processing_class=_tokenizer(model),
            )
            return self._trained(trainer, record, training)

    def rollouts(self, teacher: str) -> Rows:
        """Sample the cache of stage 2a, in the columns of GKD's collator."""
        with self._timed("rollouts") as record:
            prompts = [row["prompt"] for row in self._problems(self.plan.inputs.first_half)]
            answers = self._sample(teacher, prompts, self.plan.rollouts, seed=1)
            record.tokens = sum(map(len, answers))
            questions = [p for p in prompts for _ in range(self.plan.rollouts.samples)]
            return [self._cached(*pair) for pair in zip(questions, answers, strict=True)]

    def warmup(self, student: str, teacher: str, rollouts: Rows) -> str:
        """Stage 2a."""
        training = self.plan.warmup
        with self._timed("warmup") as record:
            trainer = GKDTrainer(
                model=student,
                teacher_model=AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32),
                args=GKDConfig(**self._arguments("warmup", training), lmbda=0.0, beta=FORWARD_KL, temperature=1.0),
                train_dataset=Dataset.from_list(rollouts),
                processing_class=self.tokenizer,
            )
            model = self._trained(trainer, record, training)
            passes = training.steps * training.sequences / len(rollouts)
            record.tokens = round(passes * sum(sum(row["completion_mask"]) for row in rollouts))
            return model

    def opd(self, student: str, teacher: str) -> str:
        """Stage 2b. TRL makes one rollout a row: each prompt of an update stands in it as often as it is sampled."""
        training = self.plan.opd
        with self._timed("opd") as record:
            prompts = [row["prompt"] for row in self._problems(self.plan.inputs.first_half)]
            rows = [{"prompt": p} for p in update_prompts(prompts, training, self.plan.seed)]
            more = self._on_policy(training) | {"beta": REVERSE_KL, "shuffle_dataset": False}
            trainer = DistillationTrainer(
                model=student,
                teacher_model=AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32),
                args=DistillationConfig(**self._arguments("opd", training), **more),
                train_dataset=Dataset.from_list(rows),
                processing_class=self.tokenizer,
            )
            return self._trained(trainer, record, training)

    def evaluate(self, stage: str, model: str) -> None:
        """Count right samples of each problem of the evaluation set."""
        sampling = self.plan.evaluation
        with self._timed(f"evaluate {stage}") as record:
            rows = self._problems(self.plan.inputs.evaluation)
            answers = self._sample(model, [row["prompt"] for row in rows], sampling, seed=2)
            record.tokens = sum(map(len, answers))
            texts = iter(self.tokenizer.batch_decode(answers, skip_special_tokens=True))
            for row in rows:
                extra = {"entry": row["entry"]}
                scores = (
                    compute_score(row["data_source"], next(texts), row["ground_truth"], extra)
                    for _ in range(sampling.samples)
                )
                record.correct[row["id"]] = round(sum(scores))

    @contextmanager
    def _timed(self, stage: str) -> Iterator[StageRecord]:
        record = StageRecord(stage, began=time.time())
        yield record
        record.ended = time.time()
        self.records.append(record)
        (self.out / "stages.json").write_text(json.dumps([vars(one) for one in self.records], indent=1))
        print(f"trl: {stage}, {record.ended - record.began:.1f} s, {record.tokens} tokens", flush=True)

    def _arguments(self, stage: str, training: Training) -> dict[str, Any]:
        return {
            "output_dir": str(self.out / stage),
            "max_steps": training.steps,
            "save_steps": training.save_every,
            "per_device_train_batch_size": training.sequences,
            "learning_rate": training.learning_rate,
            "lr_scheduler_type": "constant_with_warmup",
            "warmup_steps": training.warmup_steps,
            "weight_decay": training.weight_decay,
            "max_grad_norm": training.clip_grad,
            "seed": self.plan.seed,
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "logging_steps": 1,
            "report_to": "none",
            "disable_tqdm": True,
        }

    def _on_policy(self, training: Training) -> dict[str, Any]:
        sampling = training.sampling
        return {
            "max_completion_length": self.plan.response_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
        }

    def _trained(self, trainer: Trainer, record: StageRecord, training: Training) -> str:
        trainer.train()
        record.updates = trainer.state.global_step
        lengths = [log.get("completions/mean_length", 0.0) for log in trainer.state.log_history]
        record.tokens = round(sum(lengths) * training.sequences)
        model = self.out / record.stage / "model"
        trainer.save_model(str(model))
        return str(model)

    def _problems(self, path: str) -> Rows:
        """Read problems in TRL's columns: the prompt is the text that the chat template makes."""
        return [
            {
                "prompt": self.tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True),
                "data_source": row["data_source"],
                "ground_truth": row["reward_model"]["ground_truth"],
                "entry": row["extra_info"]["entry"],
                "id": row["extra_info"]["index"],
            }
            for row in pq.read_table(path).to_pylist()
        ]

    def _cached(self, prompt: str, answer: list[int]) -> dict[str, Any]:
        asked = self.tokenizer(prompt)["input_ids"]
        mask = [0] * len(asked) + [1] * len(answer)
        return {"prompt": prompt, "input_ids": asked + answer, "completion_mask": mask}

    @torch.no_grad()
    def _sample(self, model: str, prompts: Sequence[str], sampling: Sampling, seed: int) -> list[list[int]]:
        """Sample answers of all prompts, prompt by prompt, each up to and with its end token."""
        set_seed(1000 * self.plan.seed + seed)
        network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        asked = self.tokenizer(list(prompts), padding=True, return_tensors="pt")
        made = network.generate(
            **asked,
            num_return_sequences=sampling.samples,
            do_sample=True,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=0,
            max_new_tokens=self.plan.response_tokens,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        return [_until_end(row, self.tokenizer.eos_token_id) for row in made[:, asked["input_ids"].shape[1] :].tolist()]


def _until_end(answer: list[int], end: int) -> list[int]:
    return answer[: answer.index(end) + 1] if end in answer else answer


def _tokenizer(model: str) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(model, padding_side="left")


if __name__ == "__main__":
    TrlStages(BridgePlan.read(Path(sys.argv[1])), Path(sys.argv[2])).run()
