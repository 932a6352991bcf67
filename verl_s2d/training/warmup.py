"""Stage 2a, forward-KL warmup on cached teacher rollouts.

    python -m verl_s2d.training.warmup model.path=STUDENT s2d.teacher.path=TEACHER data.train_files=rollouts.parquet ...

Every key of verl's sft_trainer_engine.yaml works; see config/s2d_warmup.yaml for ours. No rollout server is started,
no verifier runs, no answer is read.
"""

from __future__ import annotations

import math
import os
import sys

import hydra
import ray
from omegaconf import DictConfig, open_dict
from torchdata.stateful_dataloader import StatefulDataLoader
from verl.trainer.sft_trainer_ray import SFTTrainer
from verl.utils.dataset.dataset_utils import SFTTensorCollator
from verl.utils.device import auto_set_device

from verl_s2d.errors import UserError
from verl_s2d.training.warmup_checks import check_warmup
from verl_s2d.training.warmup_data import CachedRollouts, ShuffledPasses


class WarmupTrainer(SFTTrainer):
    """verl's SFT trainer (loop, checkpoints, resume, logging) with the teacher's distribution in place of labels."""

    def _build_dataset(self) -> None:
        self.train_dataset, self.val_dataset = CachedRollouts(self.config.data.train_files), None
        self.vocab_size = check_warmup(self.config, self.model_config, self.train_dataset)

    def _build_dataloader(self) -> None:
        """One epoch as long as training, so that a resumed loader continues at the exact batch."""
        config, size = self.config, len(self.train_dataset)
        self.global_batch_size = config.data.train_batch_size
        passes = math.ceil(config.trainer.total_epochs * size / self.global_batch_size)
        self.total_training_steps = config.trainer.total_training_steps or passes
        self.steps_per_epoch = self.total_training_steps
        with open_dict(config):
            config.trainer.total_epochs = 1
        self.train_sampler = ShuffledPasses(
            size, self.total_training_steps * self.global_batch_size, config.trainer.seed
        )
        self.train_dataloader = StatefulDataLoader(
            dataset=self.train_dataset,
            batch_size=self.global_batch_size,
            sampler=self.train_sampler,
            collate_fn=SFTTensorCollator(config.data.pad_mode),
            num_workers=config.data.num_workers,
            drop_last=True,
        )
        self.val_dataloader = None
        self.optimizer_config.total_training_steps = self.total_training_steps
        self.save_freq, self.test_freq = config.trainer.save_freq, -1

    def _build_engine(self) -> None:
        from verl.single_controller.ray import RayClassWithInitArgs, RayResourcePool, RayWorkerGroup
        from verl.workers.engine_workers import TrainingWorkerConfig

        from verl_s2d.training.warmup_worker import WarmupWorker

        config = self.config
        worker_config = TrainingWorkerConfig(
            model_type="language_model",
            model_config=self.model_config,
            engine_config=self.engine_config,
            optimizer_config=self.optimizer_config,
            checkpoint_config=self.checkpoint_config,
            profiler_config=self.profiler_config,
        )
        self.resource_pool = RayResourcePool(process_on_nodes=[config.trainer.n_gpus_per_node] * config.trainer.nnodes)
        self.training_client = RayWorkerGroup(
            resource_pool=self.resource_pool,
            ray_cls_with_init=RayClassWithInitArgs(
                ray.remote(WarmupWorker),
                config=worker_config,
                teacher_path=config.s2d.teacher.path,
                trust_remote_code=config.s2d.teacher.trust_remote_code,
                vocab_size=self.vocab_size,
                chunk=config.s2d.chunk_tokens,
            ),
            device_name=config.trainer.device,
        )
        self.training_client.reset()

    def fit(self) -> None:
        if self.resume_global_step >= self.total_training_steps:
            print(f"all {self.total_training_steps} steps are in the checkpoint already")
            return
        super().fit()


def _init_ray(config: DictConfig) -> None:
    """Join the cluster of RAY_ADDRESS, or start a local one; on a CPU its GPUs are logical."""
    if ray.is_initialized():
        return
    arguments = {key: value for key, value in config.ray_kwargs.ray_init.items() if value is not None}
    if not os.environ.get("RAY_ADDRESS") and config.trainer.device == "cpu":
        arguments.setdefault("num_gpus", config.trainer.n_gpus_per_node)
        # verl asks for three CPUs a worker; logical ones, on a machine that may have two.
        arguments.setdefault("num_cpus", 4 * config.trainer.n_gpus_per_node + 4)
    ray.init(runtime_env={"env_vars": {"TOKENIZERS_PARALLELISM": "true"}}, **arguments)


@hydra.main(config_path="pkg://verl_s2d.config", config_name="s2d_warmup", version_base=None)
def main(config: DictConfig) -> None:
    """Train. Bad input ends with one message and exit code 2, before Ray starts."""
    auto_set_device(config)
    try:
        trainer_checks(config)
        _init_ray(config)
        WarmupTrainer(config).fit()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def trainer_checks(config: DictConfig) -> None:
    """What can be refused without building anything."""
    from verl.utils.config import omega_conf_to_dataclass

    from verl_s2d.training.warmup_checks import check_settings

    check_settings(config)
    check_warmup(config, omega_conf_to_dataclass(config.model), CachedRollouts(config.data.train_files))


if __name__ == "__main__":
    main()
