"""Check the symbols that verl-s2d takes from verl, TransferQueue and vLLM. A failure names what moved."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path

import pytest

import verl_s2d

PACKAGE = Path(verl_s2d.__file__).parent
FOREIGN = ("verl", "vllm", "transfer_queue")


def _imports() -> list[str]:
    """`module` or `module:name` of every import from FOREIGN in the package, in functions too."""
    found = set()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module.split(".")[0] in FOREIGN:
                found.update(f"{node.module}:{alias.name}" for alias in node.names)
            elif isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names if alias.name.split(".")[0] in FOREIGN)
    return sorted(found)


def _find(name: str):
    """The object of `module:attribute.attribute`, or the module."""
    module, _, path = name.partition(":")
    found = importlib.import_module(module)
    for part in path.split(".") if path else ():
        if inspect.ismodule(found) and not hasattr(found, part):
            found = importlib.import_module(f"{found.__name__}.{part}")
        else:
            found = getattr(found, part)
    return found


@pytest.mark.parametrize("name", _imports())
def test_import_exists(name):
    _find(name)


# What is overridden or called: its parameters, in order. `...` ends the ones that matter to us.
SIGNATURES = {
    "verl.plugin.platform:get_platform": "",
    "verl.plugin.platform.platform_base:PlatformBase.ray_resource_name": "self",
    "verl.plugin.platform.platform_manager:PlatformRegistry.get": "name",
    "verl.plugin.platform.platform_manager:PlatformRegistry.register": "platform",
    "verl.trainer.ppo.v1.agent_loop_tq:AgentLoopWorkerTQ.__ray_metadata__.modified_class._run_prompt": (
        "self, prompt, sampling_params, trajectory, trace, ..."
    ),
    "verl.trainer.ppo.v1.agent_loop_tq:AgentLoopWorkerTQ.__ray_metadata__.modified_class._run_agent_loop": (
        "self, sampling_params, trajectory, agent_name, ..."
    ),
    "verl.trainer.ppo.v1.trainer_sync:PPOTrainerSync._build_replay_buffer": "self",
    "verl.trainer.ppo.v1.trainer_sync:PPOTrainerSync._val_metrics_update": (
        "self, data_sources, sample_uids, reward_extra_infos_dict, sample_turns, expected_acc_counts"
    ),
    "verl.trainer.ppo.v1.replay_buffer:ReplayBuffer.sample": "self, global_steps, partition_id, batch_size",
    "verl.trainer.ppo.v1.replay_buffer:ReplayBuffer._terminal_eviction_reasons": "self, global_steps, partition_id",
    "verl.trainer.ppo.v1.replay_buffer:ReplayBuffer._evict_terminal_groups": (
        "self, global_steps, partition_id, eviction_reasons"
    ),
    "verl.trainer.ppo.v1.replay_buffer:ReplayBuffer._materialize_batch": (
        "self, partition_id, selected_prompt_uids, partition_snapshot"
    ),
    "transfer_queue:kv_list": "partition_id",
    "verl.utils.dataset.rl_dataset:collate_fn": "data_list",
    "verl.workers.rollout.llm_server:LLMServerClient._acquire_server": "self, request_id, ...",
    "verl.workers.rollout.llm_server:LLMServerClient._release_server": "self, server_id, request_id",
    "verl.workers.rollout.llm_server:LLMServerClient._vllm_request_id": "self, request_id",
    "verl.workers.rollout.replica:RolloutReplicaRegistry.register": "name, loader",
    "verl.experimental.reward_loop.reward_loop:RewardLoopWorker.compute_score_batch": "self, data",
    "verl.utils.distributed:initialize_global_process_group_ray": "timeout_second, backend",
    "verl.workers.engine.base:EngineRegistry.register": "model_type, backend, device, ...",
    "verl.workers.engine.fsdp.transformer_impl:FSDPEngineWithLMHead._build_fsdp_module": "self, module",
    "verl.workers.engine.fsdp.transformer_impl:FSDPEngineWithLMHead.eval_mode": "self, kwargs",
    "verl.workers.engine.fsdp.transformer_impl:FSDPEngineWithLMHead.forward_step": (
        "self, micro_batch, loss_function, forward_only"
    ),
    "verl.workers.engine.megatron.transformer_impl:MegatronEngineWithLMHead.eval_mode": "self, kwargs",
    "verl.workers.engine.megatron.transformer_impl:MegatronEngineWithLMHead.forward_step": (
        "self, batch_iter, model, logits_processor_func, postprocess_micro_batch_func"
    ),
    "verl.workers.engine.megatron.transformer_impl:MegatronEngineWithLMHead.forward_backward_batch": (
        "self, data, loss_function, forward_only"
    ),
    "verl.workers.engine.megatron.transformer_impl:MegatronEngineWithLMHead.get_data_parallel_group": "self",
    "verl.utils.megatron_utils:unwrap_model": "model, ...",
    "verl.utils.model:get_generation_config": "model, trust_remote_code",
    "verl.workers.engine.fsdp.transformer_impl:FSDPEngineWithLMHead.get_data_parallel_group": "self",
    "verl.models.mcore.util:preprocess_bshd_engine": (
        "input_ids, pre_process, need_roll, use_fp8_padding, forced_max_seqlen"
    ),
    "verl.models.mcore.util:preprocess_thd_engine": "input_ids, pre_process, ...",
    "verl.trainer.ppo.core_algos:agg_loss": (
        "loss_mat, loss_mask, loss_agg_mode, dp_size, batch_num_tokens, global_batch_size, loss_scale_factor"
    ),
    "verl.trainer.ppo.core_algos:kl_penalty": "logprob, ref_logprob, kl_penalty",
    "verl.trainer.ppo.core_algos:register_adv_est": "name_or_enum",
    "verl.trainer.ppo.core_algos:get_adv_estimator_fn": "name_or_enum",
    "verl.trainer.ppo.v1:get_trainer_cls": "name",
    "verl.trainer.ppo.v1.trainer_base:register_trainer": "name",
    "verl.trainer.ppo.v1.trainer_sync:PPOTrainerSync.__init__": "self, config",
    "verl.trainer.ppo.v1.trainer_sync:PPOTrainerSync._setup": "self",
    "verl.trainer.ppo.v1.trainer_sync:PPOTrainerSync._init_resource_pool_mgr": "self",
    "verl.trainer.ppo.v1.trainer_sync:PPOTrainerSync._compute_reward_colocate": "self, batch, metrics",
    "verl.trainer.ppo.v1.trainer_sync:PPOTrainerSync._balance_batch": "self, batch, metrics, ...",
    "verl.trainer.ppo.v1.trainer_sync:PPOTrainerSync._compute_advantage": "self, batch, metrics",
    "verl.trainer.ppo.v1.trainer_sync:PPOTrainerSync._update_actor": "self, batch, metrics",
    "verl.trainer.ppo.v1.trainer_sync:PPOTrainerSync._compute_old_log_prob": "self, batch, metrics",
    "transfer_queue:KVBatchMeta": "keys, tags, partition_id, fields, extra_info",
    "verl.trainer.ppo.v1.trainer_sync:PPOTrainerSync.step": "self, metrics, timing_raw",
    "verl.trainer.ppo.v1.trainer_sync:PPOTrainerSync._init_dataloader": "self",
    "verl.trainer.ppo.v1.trainer_sync:PPOTrainerSync._next_train_batch": "self, num_prompts",
    "verl.trainer.ppo.v1.trainer_sync:PPOTrainerSync._compute_metrics": (
        "self, batch, metrics, timing_raw, global_steps, epoch"
    ),
    "verl.experimental.agent_loop.agent_loop:register": "agent_name",
    "verl.experimental.agent_loop.single_turn_agent_loop:SingleTurnAgentLoop.run": (
        "self, sampling_params, priority, kwargs"
    ),
    "verl.trainer.ppo.v1.trainer_sync:PPOTrainerSync.on_step_end": "self",
    "verl.trainer.ppo.v1.trainer_sync:PPOTrainerSync._save_checkpoint": "self",
    "verl.trainer.ppo.v1.trainer_sync:PPOTrainerSync._load_checkpoint": "self",
    "verl.trainer.ppo.rollout_corr_helper:compute_rollout_correction_and_add_to_batch": "batch, rollout_corr_config",
    "verl.workers.utils.padding:no_padding_2_padding": "tensor, data",
    "verl.workers.utils.padding:response_to_nested": "tensor, response_mask",
    "verl.workers.engine_workers:ActorRolloutRefWorker.__init__": "self, config, role, ...",
    "verl.workers.engine_workers:ActorRolloutRefWorker.init_model": "self",
    "verl.workers.engine_workers:TrainingWorker.__init__": "self, config",
    "verl.workers.engine_workers:TrainingWorker.train_batch": "self, data",
    "verl.workers.engine_workers:TrainingWorker.reset": "self",
    "verl.single_controller.base.decorator:register": "dispatch_mode, execute_mode, blocking, ...",
    "verl.single_controller.base.decorator:make_nd_compute_dataproto_dispatch_fn": "mesh_name",
    "verl.single_controller.ray:RayClassWithInitArgs.__init__": "self, cls, args, kwargs",
    "verl.single_controller.ray:RayResourcePool.__init__": (
        "self, process_on_nodes, use_gpu, name_prefix, max_colocate_count, ..."
    ),
    "verl.single_controller.ray:RayWorkerGroup.__init__": "self, resource_pool, ray_cls_with_init, ...",
    "verl.experimental.teacher_loop.teacher_model:TeacherModelManager.__init__": (
        "self, distillation_config, teacher_model_config, resource_pool"
    ),
    "verl.workers.rollout.vllm_rollout.vllm_async_server:vLLMHttpServer.generate": (
        "self, prompt_ids, sampling_params, request_id, ..."
    ),
    "verl.workers.rollout.vllm_rollout.utils:extract_prompt_logprobs": "output, num_prompt_logprobs, result_dict",
    "verl.trainer.sft_trainer_ray:SFTTrainer.__init__": "self, config",
    "verl.trainer.constants_ppo:get_ppo_ray_runtime_env": "config",
    "verl.trainer.sft_trainer_ray:SFTTrainer._build_config": "self",
    "verl.trainer.sft_trainer_ray:SFTTrainer._build_dataset": "self",
    "verl.trainer.sft_trainer_ray:SFTTrainer._build_dataloader": "self",
    "verl.trainer.sft_trainer_ray:SFTTrainer._build_engine": "self",
    "verl.trainer.sft_trainer_ray:SFTTrainer.fit": "self",
    "verl.utils.config:omega_conf_to_dataclass": "config, dataclass_type",
    "verl.utils.dataset.dataset_utils:SFTTensorCollator.__init__": "self, pad_mode",
    "verl.utils.device:auto_set_device": "config",
    "verl.utils.device:get_device_name": "",
    "verl.utils.metric:Metric.__init__": "self, aggregation, value",
    "verl.utils.metric:Metric.aggregate": "self",
    "verl.utils.metric:Metric.aggregate_dp": "metric_lists",
    "verl.utils.tensordict_utils:assign_non_tensor": "tensor_dict, kwargs",
    "verl.utils.tensordict_utils:get": "tensordict, key, default",
    "verl.utils.tensordict_utils:get_non_tensor_data": "data, key, default",
    "verl.utils.tensordict_utils:index_select_tensor_dict": "batch, indices",
    "verl.utils.ulysses:get_ulysses_sequence_parallel_rank": "group",
    "transfer_queue:KVBatchMeta.select_keys": "self, keys_to_select",
    "verl.single_controller.base.worker:Worker._query_dispatch_info": "self, mesh_name, ...",
    "transfer_queue:kv_batch_get": "keys, partition_id, select_fields",
    "transfer_queue:kv_batch_put": "keys, partition_id, fields, ...",
    "vllm.entrypoints.llm:LLM.enqueue": "self, prompts, sampling_params, ...",
    "vllm.v1.engine.llm_engine:LLMEngine.step": "self",
    "vllm.model_executor.layers.utils:dispatch_cpu_unquantized_gemm": "layer, remove_weight",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(name):
    expected, found = SIGNATURES[name], ", ".join(inspect.signature(_find(name)).parameters)
    if expected.endswith(", ..."):
        assert f"{found}, ".startswith(expected.removesuffix("..."))
    else:
        assert found == expected


# Attributes, batch fields, flags and metric names that have no signature: the words, and where verl has them.
WORDS = {
    "verl.trainer.ppo.v1.trainer_base": [
        "self.use_reference_policy",
        "self.role_worker_mapping[",
        "self.mapping[role]",
        "mapping=self.mapping",
        # With LoRA verl would take the student without its adapter for the reference: where it decides, and acts.
        "self.ref_in_actor = lora_rank > 0",
        "if self.ref_in_actor:\n            output = self.actor_rollout_wg.compute_log_prob(batch)\n        else:",
        "output = self.ref_policy_wg.compute_ref_log_prob(batch)",
        "self.reward_loop_manager",
        "reward_loop_worker_handles",
        '"ref_log_prob"',
        '"old_log_probs"',
        '"rollout_log_probs"',
        '"rm_scores"',
        '"advantages"',
        '"actor/entropy"',
        "latest_checkpointed_iteration.txt",
        "and self.global_steps <= self.total_training_steps:",
        "is_last_step = self.global_steps >= self.total_training_steps",
        "is_last_step or self.global_steps % self.config.trainer.save_freq == 0",
        'f"global_step_{self.global_steps}"',
        'tag.get("is_padding", False)',
        'tu.assign_non_tensor_data(batch, "global_steps", self.global_steps)',
        "self.train_dataset = create_rl_dataset(",
        "refill_fn=self._add_prompts_to_generate,",
        "batch = self._next_train_batch(num_prompts)",
    ],
    "verl.trainer.ppo.v1.agent_loop_tq": [
        '"response_len": response_len',
        # A problem's fields reach its agent loop, and with its rollouts the update.
        "session_id=i, **prompt",
        "field.update(kwargs)",
        "config.agent.default_agent_loop",
    ],
    "verl.workers.rollout.vllm_rollout.vllm_async_server": ['max_tokens = sampling_params.pop("max_tokens")'],
    "verl.workers.rollout.sglang_rollout.async_sglang_server": ['max_new_tokens = sampling_params.pop("max_tokens")'],
    "verl.utils.dataset.rl_dataset": ["self.dataframe: datasets.Dataset", 'row_dict["index"] = index'],
    "verl.workers.config.optimizer": ["lr_scheduler_type", "lr_decay_style", "lr_warmup_steps_ratio"],
    "verl.trainer.ppo.v1.replay_buffer": [
        "self.poll_interval",
        "self.failure_keys[partition_id]",
        "/rollout_failure/evicted_samples",
        "if not dapo_enabled and failed_count > 0 and not has_enough_samples:",
    ],
    "verl.trainer.ppo.core_algos": ['"actor/pg_clipfrac"', 'if kl_penalty in ("mse", "k2"):'],
    "verl.workers.utils.losses": ["**config.global_batch_info", 'metrics["actor/pg_loss"]'],
    "verl.trainer.ppo.metric_utils": ['"response_length/mean"', '"response_length/clip_ratio"'],
    "verl.models.mcore.model_forward": ["data_format", "forced_max_seqlen=forced_max_seqlen"],
    "verl.trainer.sft_trainer_ray": [
        "self.resume_global_step",
        "self.training_client",
        "self.global_batch_size",
        "device=self.device_name",
        "is_save_step = global_step % self.save_freq == 0",
        "if is_last_step or (self.save_freq > 0 and is_save_step):",
        "self.ckpt_handler.save_checkpoint(step=global_step)",
    ],
    "verl.utils.distributed": ["if not torch.distributed.is_initialized():"],
    # What ray_places sums: CPUs reserved with an accelerator, the queue's, and where its storage units go.
    "verl.single_controller.ray.base": ["max_colocate_count: int = 3", 'bundle = {"CPU": self.max_colocate_count}'],
    "transfer_queue.controller": ["@ray.remote(num_cpus=1)"],
    "transfer_queue.storage.simple_storage": ["@ray.remote(num_cpus=1)"],
    "transfer_queue.storage.bootstrap.simple_storage_bootstrap": ["get_node_round_robin_scheduling_strategies("],
    "transfer_queue.utils.common": ["alive_node_ids = sorted(", "alive_node_ids[i % len(alive_node_ids)], soft=False"],
    "verl.utils.checkpoint.fsdp_checkpoint_manager": [
        '"huggingface"',
        '"lora_train_meta.json"',
        "self.ensure_checkpoint_capacity(max_ckpt_to_keep)",
        "self.register_checkpoint(local_path, max_ckpt_to_keep)",
    ],
    "verl.workers.engine_workers": [
        "micro_batch_size_per_gpu=self.engine_config.infer_micro_batch_size_per_gpu",
        "if key not in data.keys()",
        "mini_batch_size % self.engine.get_data_parallel_size() == 0",
        "assert self.config.rollout.log_prob_micro_batch_size_per_gpu is not None",
        "self.config.actor.use_dynamic_bsz == self.config.rollout.log_prob_use_dynamic_bsz",
        "self.ref_worker_cls",
        "self.actor_worker_cls",
        "self.loss_fn = partial(ppo_loss, config=actor_config)",
        "set_loss_fn",
        'output["metrics"]',
        'metrics.pop("grad_norm"',
        'final_metrics["loss"]',
        "engine_config.forward_only",
    ],
    "verl.workers.engine.fsdp.transformer_impl": [
        "get_world_size() // self.ulysses_sequence_parallel_size",
        "self._is_offload_param",
        "self._is_offload_optimizer",
        "self.engine_config.forward_only",
        "self.engine_config.use_torch_compile",
        "offload_policy",
        "distillation_use_topk",
        "distillation_only",
        "calculate_entropy",
        "student_logits=",
        "model_output=",
        "temperature",
        "use_remove_padding",
        "sp_size=",
        "dp_size=",
        "batch_num_tokens=",
        'data["loss_mask"]',
    ],
    "verl.workers.engine.megatron.transformer_impl": [
        "return mpu.get_data_parallel_world_size()",
        "batch: TensorDict = next(batch_iter)",
        'key="distillation_use_topk"',
        'key="distillation_only"',
        'key="calculate_entropy"',
        'key="forced_max_seqlen"',
        "logits.div_(temperature",
        "student_logits=logits_bak, data=batch, data_format=data_format",
        "model_output=model_output, data=data",
        'data_format = "thd" if self.engine_config.use_remove_padding else "bshd"',
        'loss * data["num_micro_batch"]',
        "batch_num_tokens=",
        "dp_size=",
        "self.module = self._build_megatron_module()",
        "if self.engine_config.use_dist_checkpointing:",
        "logits_processor_func=loss_function",
    ],
    "verl.utils.checkpoint.megatron_checkpoint_manager": ["get_hf_model_checkpoint_path(local_path)"],
    "verl.utils.config": ["minimal_bsz = n_gpus"],
    "verl.workers.engine.utils": ["total_data_size % (force_group_size * micro_batch_size_per_gpu) == 0"],
    "verl.workers.config.actor": [
        "self.fsdp_config.ulysses_sequence_parallel_size = self.ulysses_sequence_parallel_size"
    ],
    "verl.utils.tracking": ["VERL_FILE_LOGGER_PATH"],
    "verl.utils.vllm.utils": ["get_unstacked_mapper"],
}


@pytest.mark.parametrize(("module", "word"), [(module, word) for module, words in WORDS.items() for word in words])
def test_word_in_source(module, word):
    source = Path(importlib.util.find_spec(module).origin).read_text()
    assert word in source, f"{module} no longer has {word}"


@pytest.mark.parametrize(
    "name", ["path", "trust_remote_code", "use_remove_padding", "use_shm", "override_config", "external_lib"]
)
def test_model_config_takes(name):
    assert name in inspect.signature(_find("verl.workers.config:HFModelConfig")).parameters


def test_platform_implements_all_that_verl_asks_of_one():
    from verl_s2d.platforms.cpu.platform import PlatformCPU

    assert not PlatformCPU.__abstractmethods__
