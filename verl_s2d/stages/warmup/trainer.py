r"""Train stage 2a, the warmup on cached teacher rollouts, with the forward KL or another exact signal.

    python -m verl_s2d.stages.warmup.trainer model.path=STUDENT s2d.teacher.path=TEACHER \
        data.train_files=rollouts.parquet ...

Every key of verl's sft_trainer_engine.yaml works; see s2d_warmup.yaml for ours. No rollout server is started,
no verifier runs, no answer is read.
"""

from __future__ import annotations

import logging
import math
import sys
from types import SimpleNamespace

import hydra
import ray
from omegaconf import DictConfig, open_dict
from tensordict import TensorDict
from torchdata.stateful_dataloader import StatefulDataLoader
from verl.single_controller.ray import RayClassWithInitArgs, RayResourcePool, RayWorkerGroup
from verl.trainer.sft_trainer_ray import SFTTrainer
from verl.utils import tensordict_utils as tu
from verl.utils.device import auto_set_device
from verl.workers.engine_workers import TrainingWorkerConfig

from verl_s2d.errors import UserError
from verl_s2d.recipe.until import DIVERGENCE
from verl_s2d.signals.top_k_kl import TopK
from verl_s2d.stages.ending import end_file
from verl_s2d.stages.ending.end_rule import EndRule
from verl_s2d.stages.shared.ray_cluster import join_ray, require_cpu_platform, require_places
from verl_s2d.stages.shared.save_on_request import SaveClock, read_save_minutes
from verl_s2d.stages.warmup.config_checks import check_cache, check_models, check_settings
from verl_s2d.stages.warmup.rollout_dataset import CachedRollouts, ShuffledPasses
from verl_s2d.stages.warmup.stored_top_k import RolloutsWithLikelyTokens, TeacherCollator
from verl_s2d.stages.warmup.worker import WarmupWorker
from verl_s2d.workflow import save_request

logger = logging.getLogger(__name__)


class WarmupTrainer(SFTTrainer):
    """verl's SFT trainer (loop, checkpoints, resume, logging) with the teacher's distribution in place of labels.

    Ray is joined only after the checks of configuration, models and cache.

    Raises:
        UserError: a check fails, or the cluster has no room for the workers.
    """

    def __init__(self, config: DictConfig):
        self._save_clock = SaveClock(read_save_minutes(config))
        self._checkpoints = config.trainer.default_local_dir
        super().__init__(config)
        self._end_rule = EndRule(self.s2d.until)
        end_file.load(self._end_rule, self._checkpoints, self.resume_global_step)
        self._step = self.resume_global_step
        # verl's loop sums token counts on this device, and the driver's node may have no accelerator.
        self.device_name = "cpu"

    def _build_config(self) -> None:
        self.s2d = check_settings(self.config)
        for difference in check_models(self.config):
            logger.warning(difference)
        super()._build_config()

    def _build_dataset(self) -> None:
        path, signal, weights = self.config.data.train_files, self.s2d.signal, self.s2d.problem_weights
        if isinstance(signal, TopK):
            self.train_dataset = RolloutsWithLikelyTokens(path, signal.k, weights)
        else:
            self.train_dataset = CachedRollouts(path, weights, self.s2d.router)
        self.val_dataset = None
        self.vocab_size = check_cache(self.config, self.model_config, self.train_dataset)

    def _build_dataloader(self) -> None:
        """Build a loader of one epoch as long as training, so that a resumed loader continues at the exact batch."""
        config, size = self.config, len(self.train_dataset)
        self.global_batch_size = config.data.train_batch_size
        passes = math.ceil(config.trainer.total_epochs * size / self.global_batch_size)
        steps = self._wanted_steps = config.trainer.total_training_steps or passes
        self.steps_per_epoch = steps
        with open_dict(config):
            config.trainer.total_epochs = 1
        self.train_sampler = ShuffledPasses(size, steps * self.global_batch_size, config.trainer.seed)
        self.train_dataloader = StatefulDataLoader(
            dataset=self.train_dataset,
            batch_size=self.global_batch_size,
            sampler=self.train_sampler,
            collate_fn=TeacherCollator(config.data.pad_mode),
            num_workers=config.data.num_workers,
            drop_last=True,
        )
        self.val_dataloader = None
        self.optimizer_config.total_training_steps = steps
        self._save_every, self.test_freq = config.trainer.save_freq, -1
        if self._save_every == "after_each_epoch":
            self._save_every = math.ceil(size / self.global_batch_size)

    def _build_engine(self) -> None:
        config = self.config
        join_ray(config)
        require_places(config.trainer.nnodes, config.trainer.n_gpus_per_node)
        worker_config = TrainingWorkerConfig(
            model_type="language_model",
            model_config=self.model_config,
            engine_config=self.engine_config,
            optimizer_config=self.optimizer_config,
            checkpoint_config=self.checkpoint_config,
            profiler_config=self.profiler_config,
        )
        # One group of workers per place; verl's default of ten would reserve ten CPUs per worker.
        self.resource_pool = RayResourcePool(
            process_on_nodes=[config.trainer.n_gpus_per_node] * config.trainer.nnodes, max_colocate_count=1
        )
        self.training_client = RayWorkerGroup(
            resource_pool=self.resource_pool,
            ray_cls_with_init=RayClassWithInitArgs(
                ray.remote(WarmupWorker),
                config=worker_config,
                settings=self.s2d.written(),
                vocab_size=self.vocab_size,
            ),
            device_name=config.trainer.device,
        )
        self.training_client.reset()

    def _build_ckpt_handler(self) -> None:
        super()._build_ckpt_handler()
        save = self.ckpt_handler.save_checkpoint

        def save_checkpoint(step: int) -> None:
            end_file.store(self._end_rule, self._checkpoints, step)
            save(step)
            self._save_clock.restart()

        self.ckpt_handler.save_checkpoint = save_checkpoint

    @property
    def save_freq(self) -> int:
        """Return the steps between checkpoints; 1 when one is due by the clock. verl reads it after each step."""
        return 1 if self._save_clock.due() else self._save_every

    @property
    def total_training_steps(self) -> int:
        """Return the last step, which verl saves; 0 once a rule holds, or the trainer is asked to save and stop.

        verl reads it at the end of each step, so the current step becomes the last one.
        """
        ends = self._end_rule.reason is not None or save_request.asked(self._checkpoints)
        return 0 if ends else self._wanted_steps

    def fit(self) -> None:
        if self._end_rule.reason is not None or self.resume_global_step >= self._wanted_steps:
            print(f"the checkpoint already has all steps, {self._end_rule.reason or self._wanted_steps}")
            return
        self._feed_end_rule()
        super().fit()

    def _feed_end_rule(self) -> None:
        """Let the rules of `until` read each step's metrics, which verl's loop passes to its logger only."""
        client, metric = self.training_client, self.s2d.measured[DIVERGENCE]
        train = client.train_batch

        def train_batch(data: TensorDict) -> SimpleNamespace:
            output = train(data).get()  # no limit: this process trains, and the call has returned
            self._step += 1
            self._end_rule.add_step(self._step, divergence=tu.get(output, "metrics").get(metric))
            return SimpleNamespace(get=lambda: output)

        client.train_batch = train_batch


@hydra.main(config_path="pkg://verl_s2d.stages.warmup", config_name="s2d_warmup", version_base=None)
def main(config: DictConfig) -> None:
    """Train; on bad input print one message and exit with code 2."""
    try:
        require_cpu_platform(config)
        auto_set_device(config)
        WarmupTrainer(config).fit()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
