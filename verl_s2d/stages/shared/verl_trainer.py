"""Stages 1 and 3 (kind `grpo`) and stage 2b (kind `opd`): verl's own `main_ppo` with our overrides."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verl_s2d.stages.shared import checkpoints, early_stop
from verl_s2d.stages.shared.batch_settings import batch_setting, sequences_per_step
from verl_s2d.stages.shared.budget import last_step, left, length, steps_to_ask_for
from verl_s2d.verl_settings.overrides import hydra_arguments, merge, value_of
from verl_s2d.workflow.failures import StageFailed
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.hosts.cluster_demand import STORAGE_UNITS, storage_units
from verl_s2d.workflow.ledger import Ledger, empty_ledger, sum_over_steps, verifier_calls
from verl_s2d.workflow.stage import (
    Command,
    Context,
    merged_verl,
    metrics_file,
    model_location,
    trusts_remote_code,
    verifier_argument,
)
from verl_s2d.workflow.watch.metric_logs import read_metrics


def token_budget(node: Node, directory: Path) -> dict[str, int | None]:
    """The trainer's budget of tokens, for a stage that is matched by them; null until it has been measured."""
    if node.settings["steps"] is not None or node.settings["matched"]["by"] != "sampled_tokens":
        return {}
    return {"+s2d.token_budget": left(node, directory.parent)}


def _steps_done(node: Node, directory: Path) -> int | None:
    """Of a finished stage, what an alarm threw away included: it was consumed."""
    return early_stop.steps_done(directory) or last_step(node, directory)


def log_backends(chosen: Any) -> list[str]:
    """verl's trainer.logger: what the recipe asks for, always with the two that the workflow reads."""
    backends = [chosen] if isinstance(chosen, str) else list(chosen or [])
    return backends + [b for b in ("console", "file") if b not in backends]


class _VerlTrainer(ABC):
    """What `grpo` and `opd` share."""

    semantics = 1
    needs_ray = True
    parquet_suffix = ""

    def command(self, node: Node, context: Context, attempt: int) -> Command:
        directory = context.directory(node)
        settings = node.settings
        steps = steps_to_ask_for(node, directory.parent)
        chosen = merged_verl(node)
        data = str(context.directory(node.inputs["slices"]) / f"{settings['slice']}{self.parquet_suffix}.parquet")
        computed: dict[str, Any] = {
            "actor_rollout_ref.model.path": model_location(node, "model", context),
            "actor_rollout_ref.model.trust_remote_code": trusts_remote_code(node, "model"),
            "data.train_files": data,
            # verl insists on validation files, and does not read them as long as validation is switched off.
            "data.val_files": data,
            "data.max_prompt_length": settings["prompt_tokens"],
            "data.max_response_length": settings["response_tokens"],
            **{f"+data.apply_chat_template_kwargs.{name}": v for name, v in settings["chat_template"].items()},
            "data.seed": settings["seed"],
            "actor_rollout_ref.actor.data_loader_seed": settings["seed"],
            "actor_rollout_ref.rollout.seed": settings["seed"],
            "trainer.val_before_train": False,
            "trainer.test_freq": -1,
            "trainer.total_training_steps": steps,
            # An epoch has at least one step, so the step count alone ends the stage.
            "trainer.total_epochs": steps or 1,
            "trainer.default_local_dir": str(directory / "checkpoints"),
            "trainer.resume_mode": "auto",
            "trainer.save_freq": node.operations["save_every"],
            checkpoints.KEEP_KEYS[node.kind]: checkpoints.kept(node),
            "+s2d.save_minutes": node.operations["save_minutes"],
            "trainer.logger": log_backends(value_of(chosen, "trainer.logger")),
            "actor_rollout_ref.actor.checkpoint.save_contents": ["model", "optimizer", "extra", "hf_model"],
            "trainer.n_gpus_per_node": context.cluster.gpus_per_node,
            "trainer.nnodes": context.cluster.nodes,
            STORAGE_UNITS: storage_units(node, context.cluster),
            "hydra.run.dir": str(directory / "hydra"),
            **self._computed(node, context),
        }
        env = {"VERL_FILE_LOGGER_PATH": str(metrics_file(directory, attempt))}
        # The trainer is a Ray actor: it inherits the cluster's environment, not that of this stage's process.
        inherited = env | ({"VERL_PLATFORM": "cpu"} if context.device == "cpu" else {})
        runtime = {f"+ray_kwargs.ray_init.runtime_env.env_vars.{k}": v for k, v in inherited.items()}
        # Ray refuses resource counts when it joins a running cluster, which every stage does.
        resources = {"ray_kwargs.ray_init.num_cpus": None}
        chosen = {k: v for k, v in chosen.items() if k.lstrip("+") != "ray_kwargs.ray_init.num_gpus"}
        overrides = merge(chosen, resources, computed, runtime)
        return Command([sys.executable, "-m", "verl.trainer.main_ppo", *hydra_arguments(overrides)], env)

    @abstractmethod
    def _computed(self, node: Node, context: Context) -> Mapping[str, Any]:
        """Overrides of the one kind."""

    def finalize(self, node: Node, directory: Path) -> None:
        if early_stop.settle(node, directory):
            return
        steps = last_step(node, directory)
        if steps is None:
            raise StageFailed(f"{node.name} ended before it had spent its budget.", log=directory / "log.txt")
        checkpoints.hand_off(node, directory, steps)

    def finished_before(self, node: Node, directory: Path) -> bool:
        steps = last_step(node, directory)
        return steps is not None and checkpoints.finished(node, directory, steps)

    def clean(self, directory: Path) -> None:
        checkpoints.delete(directory)

    def total_steps(self, node: Node) -> int | None:
        return node.settings["steps"]

    def updates_per_step(self, node: Node) -> float:
        mini_batches = batch_setting(node, "data.train_batch_size") / batch_setting(
            node, "actor_rollout_ref.actor.ppo_mini_batch_size"
        )
        return mini_batches * batch_setting(node, "actor_rollout_ref.actor.ppo_epochs")


class Grpo(_VerlTrainer):
    """Stock GRPO against the verifier, every call of which is entered in the ledger."""

    consumes = ("labels", "verifier_calls", "sampled_tokens", "updates")

    def _computed(self, node: Node, context: Context) -> Mapping[str, Any]:
        validation: dict[str, Any] = {}
        if "validate_every" in node.settings:
            validation["data.val_files"] = node.externals["validation"].location
            validation["trainer.test_freq"] = node.settings["validate_every"]
        return {
            "trainer.v1.trainer_mode": "s2d_grpo",
            **token_budget(node, context.directory(node)),
            **validation,
            "reward.custom_reward_function.path": "pkg://verl_s2d.verifiers.ledgered",
            "reward.custom_reward_function.name": "compute_score",
            "+reward.custom_reward_function.reward_kwargs.verifier": verifier_argument(node),
            "+reward.custom_reward_function.reward_kwargs.ledger_dir": str(context.directory(node) / "verifier"),
        }

    def ledger(self, node: Node, directory: Path, seconds: float) -> Ledger:
        sequences, steps = sequences_per_step(node), _steps_done(node, directory)
        labels, calls = verifier_calls(directory)

        def sampled(data: Mapping[str, Any]) -> float | None:
            mean = data.get("response_length/mean")
            return None if mean is None else round(mean * sequences)

        tokens = sum_over_steps(read_metrics(directory), steps, sampled)
        return empty_ledger(seconds) | {
            "labels_read": labels,
            "verifier_calls": calls,
            "sampled_tokens": tokens,
            "updates": round(steps * self.updates_per_step(node)),
        }

    def describe(self, node: Node) -> str:
        s = node.settings
        return f"GRPO on slice {s['slice']} with verifier {s['verifier']}, {length(node)}"


class Opd(_VerlTrainer):
    """On-policy distillation. It is given prompts without answers, and no reward function."""

    parquet_suffix = "-prompts"
    consumes = ("sampled_tokens", "updates")

    def _computed(self, node: Node, context: Context) -> Mapping[str, Any]:
        return {
            "trainer.v1.trainer_mode": "s2d_opd",
            "algorithm.adv_estimator": "s2d_opd",
            "+s2d.teacher.path": model_location(node, "teacher", context),
            "+s2d.teacher.trust_remote_code": trusts_remote_code(node, "teacher"),
            "+s2d.beta": node.settings["beta"],
            "+s2d.objective": node.settings["objective"],
            **token_budget(node, context.directory(node)),
        }

    def ledger(self, node: Node, directory: Path, seconds: float) -> Ledger:
        metrics, steps = read_metrics(directory), _steps_done(node, directory)
        # Read rather than assumed to be empty: a verifier called by mistake must show.
        labels, calls = verifier_calls(directory)
        return empty_ledger(seconds) | {
            "labels_read": labels,
            "verifier_calls": calls,
            "sampled_tokens": sum_over_steps(metrics, steps, lambda data: data.get("s2d/sampled_tokens")),
            "teacher_scored_tokens": sum_over_steps(metrics, steps, lambda data: data.get("s2d/teacher_scored_tokens")),
            "updates": round(steps * self.updates_per_step(node)),
        }

    def describe(self, node: Node) -> str:
        s = node.settings
        return f"on-policy distillation on prompts of slice {s['slice']}, beta {s['beta']:g}, {length(node)}"
