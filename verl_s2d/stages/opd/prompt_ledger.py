"""Record the prompts without labels that stage 2b reads: the trainer's side of `s2d.prompt_ledger`."""

from __future__ import annotations

from tensordict import TensorDict

from verl_s2d.data.pool_key import is_pool_id
from verl_s2d.stages.opd.config import OpdConfig
from verl_s2d.verifiers.ledgered import record_prompt


class RecordsPrompts:
    """A mixin before verl's PPOTrainerSync that enters the ids of each batch, each once per process, in the ledger."""

    s2d: OpdConfig
    _recorded: frozenset[str] = frozenset()

    def _next_train_batch(self, num_prompts: int | None = None) -> TensorDict:
        batch = super()._next_train_batch(num_prompts)
        if self.s2d.prompt_ledger is not None:
            read = frozenset(filter(is_pool_id, map(str, batch["index"])))
            for prompt in read - self._recorded:
                record_prompt(self.s2d.prompt_ledger, prompt)
            self._recorded |= read
        return batch
