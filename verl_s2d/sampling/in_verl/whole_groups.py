"""Keep groups that lack a rollout out of a step: verl's replay buffer, which has others sampled in their place."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import transfer_queue as tq
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

from verl_s2d.errors import UserError

UNSCORED, FAILED = "unscored", "failed"
"""Tags of a prompt in TransferQueue: why the verifier could not judge one of its rollouts, or why one failed."""
MOST_BATCHES = 2
"""Batches of groups that may fail in a step. With more the stage ends: a service that is down may never come back."""
_VALIDATION = "val"


class WholeGroups(ReplayBuffer):
    """verl's buffer, for which a group with a failed rollout has failed: without one member its mean is another.

    Failed groups are dropped, and as many prompts are asked for. In the validation nothing is asked for again.

    Attributes:
        unscored: uid -> reason, of the validation's prompts with a response that the verifier could not judge.
    """

    def __init__(self, **arguments: Any):
        super().__init__(**arguments)
        self.unscored: dict[str, str] = {}
        self._batch_size, self._dropped, self._dropped_unscored = 0, 0, 0

    @classmethod
    def of(cls, buffer: ReplayBuffer) -> WholeGroups:
        """Make one with the settings of verl's."""
        settings = {name: getattr(buffer, name) for name in inspect.signature(ReplayBuffer).parameters}
        return cls(**settings | {"sync_refill_failed_groups": True, "gen_batch_size": 1})

    def sample(self, global_steps: int, partition_id: str, batch_size: int) -> tuple[Any, dict[str, Any]]:
        """Sample as verl does, and count the groups that were dropped because the verifier could not judge them.

        Raises:
            UserError: more than MOST_BATCHES batches of groups have failed, or no response of a batch of the validation
                could be judged.
        """
        self._batch_size, self._dropped, self._dropped_unscored = batch_size, 0, 0
        batch, metrics = super().sample(global_steps, partition_id, batch_size)
        if partition_id != _VALIDATION:
            dropped = self._dropped_unscored
            metrics |= {"s2d/unscored_groups": dropped, "s2d/unscored_share": dropped / batch_size}
        elif not batch.keys and self.unscored:
            raise _given_up(f"No response of the validation after step {global_steps} could be judged", self.unscored)
        return batch, metrics

    def _terminal_eviction_reasons(self, global_steps: int, partition_id: str) -> tuple[set, set, set, Counter]:
        stale, same, _, counts = super()._terminal_eviction_reasons(global_steps, partition_id)
        failed = set() if partition_id == _VALIDATION else set(self.failure_keys[partition_id])
        return stale, same, failed, counts

    def _evict_terminal_groups(
        self, global_steps: int, partition_id: str, eviction_reasons: tuple[set, set, set, Counter]
    ) -> tuple[set[str], int, int, dict]:
        if failed := eviction_reasons[2]:
            reasons, unscored = self._reasons(partition_id, failed)
            self._dropped += len(failed)
            self._dropped_unscored += len(unscored)
            if self._dropped > MOST_BATCHES * self._batch_size:
                raise _given_up(
                    f"{self._dropped} groups of rollouts failed in step {global_steps}, more than {MOST_BATCHES} "
                    f"batches of {self._batch_size}",
                    unscored or reasons,
                )
        return super()._evict_terminal_groups(global_steps, partition_id, eviction_reasons)

    def _materialize_batch(self, partition_id: str, selected_prompt_uids: list[str], partition_snapshot: dict) -> Any:
        failed = self.failure_keys[partition_id] & set(selected_prompt_uids)
        if partition_id == _VALIDATION and failed:
            self.unscored |= self._reasons(partition_id, failed)[1]
        return super()._materialize_batch(partition_id, selected_prompt_uids, partition_snapshot)

    @staticmethod
    def _reasons(partition_id: str, uids: Collection[str]) -> tuple[dict[str, str], dict[str, str]]:
        """Return uid -> reason of all that give one, and of those that the verifier could not judge."""
        tags = tq.kv_list(partition_id).get(partition_id, {})
        found = {uid: tags.get(uid, {}) for uid in uids}
        unscored = {uid: tag[UNSCORED] for uid, tag in found.items() if UNSCORED in tag}
        return {uid: tag[FAILED] for uid, tag in found.items() if FAILED in tag} | unscored, unscored


def _given_up(problem: str, reasons: Mapping[str, str]) -> UserError:
    often = Counter(reasons.values()).most_common(1)
    return UserError(
        f"{problem}: {often[0][0] if often else 'see the log of the agent loop workers'}.",
        key="verifier",
        remedy="Repair what it needs and run the same command again: the stage resumes from its last checkpoint.",
    )
