"""Run stages 1, 2b and 3 through verl's `main_ppo` with our overrides."""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from verl_s2d.metrics.metric_table import Metric
from verl_s2d.platforms.environment import actor_environment
from verl_s2d.recipe.cluster_settings import Cluster
from verl_s2d.stages.prepare.stage import prompts_file
from verl_s2d.stages.shared.batch_settings import batch_setting
from verl_s2d.stages.shared.budget import UNTIL, steps_to_ask_for, token_budget
from verl_s2d.stages.shared.node_settings import merged_verl, template_environment
from verl_s2d.stages.shared.training_stage import MODEL, SEED, SLICE, STAGE, STEPS, TRUST, TrainingStage
from verl_s2d.verl_settings.composed import RL
from verl_s2d.verl_settings.overrides import hydra_arguments, merge, value_of, without_interpolation
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.hosts.ray_places import RL_CPUS_PER_WORKER, Demand, default_storage_units
from verl_s2d.workflow.stage import Command, Context

STORAGE_UNITS = "transfer_queue.backend.SimpleStorage.num_data_storage_units"
_STORAGE_RESOURCE = "transfer_queue.backend.SimpleStorage.required_node_resource"
DROPPED_GROUPS = "training/rollout_failure/evicted_samples"
"""verl's metric of the groups of a step in whose place others were sampled; absent where there were none."""
UNSCORED = (
    Metric("s2d/unscored_groups"),
    Metric("s2d/unscored_share", alarm="unscored"),
    Metric("s2d/validation_unscored"),
    Metric("s2d/validation_unscored_share", alarm="unscored"),
)
"""Metrics of stages that read scores, logged by sampling/in_verl: groups dropped, responses a validation left out."""
THROUGHPUT = Metric("perf/throughput", live="{:,.0f} tokens/s/device")
OVERLONG = "Set data.overlong_prompts: refuse, drop or cut. It holds in every stage and in the evaluation."
_RESERVED = TrainingStage.reserved | {
    "actor_rollout_ref.model.path": MODEL,
    "actor_rollout_ref.model.trust_remote_code": TRUST,
    "data.train_files": SLICE,
    "data.val_files": "Set data.validation.",
    "data.max_prompt_length": "Set data.prompt_tokens.",
    "data.filter_overlong_prompts": OVERLONG,
    "data.truncation": OVERLONG,
    "data.max_response_length": "Set data.response_tokens; stage 2b has its own, stages.opd.response_tokens.",
    "data.apply_chat_template_kwargs": "Set data.chat_template.",
    "data.seed": SEED,
    "actor_rollout_ref.actor.data_loader_seed": SEED,
    "actor_rollout_ref.rollout.seed": SEED,
    "trainer.total_epochs": STEPS,
    "trainer.val_before_train": "Leave it out: evaluation is a stage of its own.",
    "trainer.test_freq": "Set `validate_every:` of stages 1 and 3; evaluation is a stage of its own.",
    "trainer.v1.trainer_mode": "Leave it out: this kind of stage is defined by its value.",
    "actor_rollout_ref.actor.checkpoint.save_contents": STAGE,
}


class VerlTrainerStage(TrainingStage):
    """Common parts of the stages that run verl's `main_ppo`."""

    configuration = RL
    keep_key = "trainer.max_actor_ckpt_to_keep"
    model_section = "actor_rollout_ref.model"
    reserved = _RESERVED
    reads_answers: ClassVar[bool] = True

    def command(self, node: Node, context: Context, attempt: int) -> Command:
        chosen, env = merged_verl(node), self.logger_environment(node, context, attempt)
        # The trainer is a Ray actor: it inherits the cluster's environment, not this process's.
        inherited = env | template_environment(node) | actor_environment(context.device)
        runtime = {f"+ray_kwargs.ray_init.runtime_env.env_vars.{k}": v for k, v in inherited.items()}
        # Every stage joins a running cluster, where Ray rejects resource counts.
        resources = {"ray_kwargs.ray_init.num_cpus": None}
        chosen = {k: v for k, v in chosen.items() if k.lstrip("+") != "ray_kwargs.ray_init.num_gpus"}
        adjusted = self.adjusted_overrides(node) | {STORAGE_UNITS: _storage_units(node, context.cluster)}
        overrides = merge(chosen, resources, self.overrides(node, context), adjusted, runtime)
        return Command([sys.executable, "-m", "verl.trainer.main_ppo", *hydra_arguments(overrides)], env)

    def overrides(self, node: Node, context: Context) -> dict[str, Any]:
        """Set the reserved keys."""
        directory, settings = context.directory(node), node.settings
        steps = steps_to_ask_for(node, directory.parent)
        answered = context.directory(node.inputs["slices"]) / f"{settings['slice']}.parquet"
        data = str(answered if self.reads_answers else prompts_file(node, context))
        return {
            **self.common_overrides(node, context, steps),
            "data.train_files": data,
            # verl requires validation files, and does not read them while validation is off.
            "data.val_files": data,
            "data.max_prompt_length": settings["prompt_tokens"],
            "data.max_response_length": settings["response_tokens"],
            # Longer prompts are refused, dropped or cut before slices are made.
            "data.filter_overlong_prompts": False,
            "data.truncation": "error",
            **{
                f"+data.apply_chat_template_kwargs.{name}": without_interpolation(value)
                for name, value in settings["chat_template"].items()
            },
            "data.seed": settings["seed"],
            "actor_rollout_ref.actor.data_loader_seed": settings["seed"],
            "actor_rollout_ref.rollout.seed": settings["seed"],
            "trainer.val_before_train": False,
            "trainer.test_freq": -1,
            # An epoch has at least one step, so the step count alone ends the stage.
            "trainer.total_epochs": steps or 1,
            "+s2d.save_minutes": node.operations["save_minutes"],
            "actor_rollout_ref.actor.checkpoint.save_contents": ["model", "optimizer", "extra", "hf_model"],
            **{f"+s2d.until.{name}": rule for name, rule in _rules(node, context).items()},
            **self.own_overrides(node, context),
        }

    @abstractmethod
    def own_overrides(self, node: Node, context: Context) -> Mapping[str, Any]:
        """Return the keys specific to this kind of stage; they override all others."""

    def response_tokens(self, node: Node) -> int:
        return node.settings["response_tokens"]

    def updates_per_step(self, node: Node) -> float:
        mini_batches = batch_setting(node, "data.train_batch_size") / batch_setting(
            node, "actor_rollout_ref.actor.ppo_mini_batch_size"
        )
        return mini_batches * batch_setting(node, "actor_rollout_ref.actor.ppo_epochs")

    def ray_demand(self, node: Node, cluster: Cluster) -> Demand:
        return Demand(
            cluster.nodes,
            cluster.gpus_per_node,
            cpus_per_worker=RL_CPUS_PER_WORKER,
            storage_units=_storage_units(node, cluster),
            storage_resource=value_of(merged_verl(node), _STORAGE_RESOURCE),
        )


def _storage_units(node: Node, cluster: Cluster) -> int:
    """Choose the number of TransferQueue's storage units: the recipe's, by default two per node, at most eight."""
    return value_of(merged_verl(node), STORAGE_UNITS, default_storage_units(cluster.nodes))


def _rules(node: Node, context: Context) -> Mapping[str, Any]:
    """Return the rules that end the stage before its last step: its own, or the budget of a matched stage."""
    return node.settings.get(UNTIL) or token_budget(node, context.directory(node).parent)
