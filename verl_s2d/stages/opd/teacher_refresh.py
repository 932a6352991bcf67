"""Make the teacher the student of every M-th step (CRISP): the trainer's side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from verl_s2d.errors import UserError

if TYPE_CHECKING:
    from verl_s2d.stages.opd.config import OpdConfig

KEY = "s2d.teacher_refresh"
FOLDER = "s2d_teacher"
"""Folder of the teacher's shards in a checkpoint's `actor`, with which verl deletes it."""


def check_refresh(settings: OpdConfig, config: DictConfig) -> None:
    """Check a refresh against the rest of a verl command.

    Raises:
        UserError: the teacher is not the student, or their engines shard weights in ways that differ.
    """
    actor, model = config.actor_rollout_ref.actor, config.actor_rollout_ref.model
    teacher = settings.models.get("teacher")
    for fits, problem, key, value, remedy in (
        (
            teacher is not None and teacher.servers is None and teacher.path == model.path,
            "only a teacher that starts as the student can become the student of a later step",
            "s2d.teacher.path",
            None if teacher is None else teacher.path,
            f"set it to {model.path} (actor_rollout_ref.model.path), or leave {KEY} out",
        ),
        (
            actor.strategy == "fsdp2" and config.actor_rollout_ref.ref.strategy == "fsdp2",
            "weights are copied shard by shard, which FSDP2 alone lays out alike for both",
            "actor_rollout_ref.actor.strategy",
            actor.strategy,
            f"set it and actor_rollout_ref.ref.strategy to fsdp2, or leave {KEY} out",
        ),
        (
            not model.lora_rank,
            "the student's adapter is no weight that the teacher has",
            "actor_rollout_ref.model.lora_rank",
            model.lora_rank,
            f"set it to 0, or leave {KEY} out",
        ),
    ):
        if not fits:
            raise UserError(problem, key=key, value=value, remedy=remedy)


class RefreshesTeacher:
    """A mixin before verl's PPOTrainerSync that copies the student into the teacher after every M-th update.

    A checkpoint holds the teacher too, so a stage that is resumed goes on with the same one.
    """

    s2d: OpdConfig

    def _update_actor(self, batch, metrics: dict):
        batch = super()._update_actor(batch, metrics)
        every = self.s2d.teacher_refresh
        if every is not None and self.global_steps % every == 0:
            self.actor_rollout_wg.refresh_teacher()
            metrics["s2d/teacher_refreshed"] = 1.0
        return batch

    def _save_checkpoint(self) -> None:
        # Before verl's, which ends with the file that names the newest complete checkpoint.
        if self.s2d.teacher_refresh is not None:
            checkpoint = Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}"
            self.actor_rollout_wg.save_teacher(str(checkpoint / "actor" / FOLDER))
        super()._save_checkpoint()

    def _load_checkpoint(self) -> None:
        super()._load_checkpoint()
        if self.s2d.teacher_refresh is None or self.global_steps == 0:
            return
        trainer = self.config.trainer
        checkpoint = Path(trainer.default_local_dir) / f"global_step_{self.global_steps}"
        if trainer.resume_mode == "resume_path":
            checkpoint = Path(trainer.resume_from_path)
        folder = checkpoint / "actor" / FOLDER
        if not folder.is_dir():
            raise UserError(
                "this checkpoint holds no teacher, so it was written without a refresh",
                key=KEY,
                value=self.s2d.teacher_refresh,
                remedy="leave it out, or start anew in another trainer.default_local_dir",
            )
        self.actor_rollout_wg.load_teacher(str(folder))
