"""Sample other prompts for groups that lack a rollout, and leave unscored responses out of a validation: a mixin."""

from __future__ import annotations

import uuid
from collections import Counter
from typing import Any

import numpy as np
from tensordict import TensorDict
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
from verl.utils import tensordict_utils as tu
from verl.utils.dataset.rl_dataset import collate_fn

from verl_s2d.sampling.in_verl.whole_groups import WholeGroups


class RefillsGroups:
    """A mixin before verl's PPOTrainerSync; a custom sampler of the command stays as it is.

    Prompts in the place of failed groups are drawn at random from the training problems, so the order in which verl
    reads them, and resumes to read them, stays what it is without a failure.
    """

    _refills = 0

    def _build_replay_buffer(self) -> ReplayBuffer:
        buffer = super()._build_replay_buffer()
        return WholeGroups.of(buffer) if type(buffer) is ReplayBuffer else buffer

    def _next_train_batch(self, num_prompts: int | None = None) -> TensorDict:
        """Read the step's batch, or draw so many problems in the place of failed groups."""
        # One prompt at a time is verl's own way to ask for more of them, as dynamic sampling needs.
        if num_prompts is None or self.config.data.get("gen_batch_size") == 1:
            return super()._next_train_batch(num_prompts)
        self._refills += 1
        rng = np.random.default_rng([self.config.data.get("seed") or 0, self.global_steps, self._refills])
        drawn = rng.integers(len(self.train_dataset), size=num_prompts).tolist()
        rows = collate_fn([self.train_dataset[number] for number in drawn])
        rows["uid"] = np.array([str(uuid.uuid4()) for _ in drawn], dtype=object)
        batch = tu.get_tensordict(rows)
        tu.assign_non_tensor_data(batch, "global_steps", self.global_steps)
        return batch

    def _val_metrics_update(
        self,
        data_sources: list,
        sample_uids: list[str],
        reward_extra_infos_dict: dict[str, list],
        sample_turns: list,
        expected_acc_counts: dict[tuple[str, str], int] | None = None,
    ) -> dict[str, Any]:
        """Compute verl's validation metrics over the responses that the verifier could judge, and count the others."""
        passed = (data_sources, sample_uids, reward_extra_infos_dict, sample_turns)
        if not isinstance(self.replay_buffer, WholeGroups) or not expected_acc_counts:
            return super()._val_metrics_update(*passed, expected_acc_counts=expected_acc_counts)
        unscored, self.replay_buffer.unscored = self.replay_buffer.unscored, {}
        there, expected = Counter(sample_uids), expected_acc_counts
        missing = sum(number - there[uid] for (_, uid), number in expected.items() if uid in unscored)
        counted = {key: number for key, number in expected.items() if key[1] not in unscored}
        found = super()._val_metrics_update(*passed, expected_acc_counts=counted)
        return found | {
            "s2d/validation_unscored": missing,
            "s2d/validation_unscored_share": missing / sum(expected.values()),
        }
