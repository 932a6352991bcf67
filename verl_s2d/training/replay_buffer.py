"""verl's replay buffer for steps that are shorter than its polling interval."""

from __future__ import annotations

from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

POLL_SECONDS = 0.05


class QuickReplayBuffer(ReplayBuffer):
    """Looks for finished rollouts every 50 ms instead of every two seconds.

    For `trainer.v1.sampler.custom_sampler`, with stock GRPO on tiny models. verl gives a custom sampler no group
    filtering (`algorithm.filter_groups`), so recipes that filter keep verl's own.
    """

    def __init__(self, **arguments):
        super().__init__(**{**arguments, "poll_interval": POLL_SECONDS})
