"""Make verl's reward workers load the tokenizer with `actor_rollout_ref.model.trust_remote_code`.

verl loads it with trust_remote_code=True whatever the configuration, which runs code from the checkpoint. Applied on
every platform. Twin: patches/verl-reward-loop-trust.patch; does nothing when that is applied.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

from verl.experimental.reward_loop import reward_loop

from verl_s2d.platforms.plugin_status import STATUS


def _load(trusted: bool, original: Any, path: str, *args: Any, **kwargs: Any) -> Any:
    return original(path, *args, **{**kwargs, "trust_remote_code": trusted})


def _install() -> str:
    worker = reward_loop.RewardLoopWorker
    original, load = worker._init_reward_fn, reward_loop.hf_tokenizer
    if "trust_remote_code=True" not in inspect.getsource(original):
        return "upstream"

    @functools.wraps(original)
    def _init_reward_fn(self: Any) -> None:
        trusted = bool(self.config.actor_rollout_ref.model.get("trust_remote_code", False))
        # A worker is a separate process, so no other code uses the name.
        reward_loop.hf_tokenizer = functools.partial(_load, trusted, load)
        original(self)

    worker._init_reward_fn = _init_reward_fn
    return "shim"


STATUS.shims["reward_loop_trust"] = _install()
