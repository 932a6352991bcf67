"""Render the teacher's own prompts for a batch of student rollouts, and record the labels that they hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transfer_queue as tq
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDict

from verl_s2d.data.model_files import hub_files
from verl_s2d.data.teacher_prompt import columns_of, teacher_messages
from verl_s2d.sampling.prompts import load_tokenizer, render_prompt
from verl_s2d.stages.opd.config import OpdConfig
from verl_s2d.teachers.own_prompt import OWN_PROMPTS
from verl_s2d.teachers.router import TEACHER
from verl_s2d.verifiers.ledgered import record_label


class TeacherPrompts:
    """Writes prompts rendered with the teacher's chat template into verl's batches.

    Args:
        settings: section `s2d` with a teacher_prompt.
        config: verl's configuration.
    """

    def __init__(self, settings: OpdConfig, config: DictConfig):
        model = settings.models[TEACHER]
        path = hub_files(model.path, model.revision, TEACHER) if model.revision else model.path
        self._tokenizer = load_tokenizer(str(path), trust_remote_code=model.trust_remote_code)
        self._template, self._ledger = settings.teacher_prompt, settings.label_ledger
        self._reads_labels = bool(columns_of(self._template))
        options = config.data.get("apply_chat_template_kwargs") or {}
        self._options = OmegaConf.to_container(options) if OmegaConf.is_config(options) else dict(options)

    def write(self, batch: Any) -> None:
        """Add OWN_PROMPTS to a batch in TransferQueue: nested ids, equal for rollouts of one problem.

        Raises:
            Refused: a problem lacks a column of the template.
        """
        at = {"keys": batch.keys, "partition_id": batch.partition_id}
        names = ("uid", "raw_prompt", "reward_model", "extra_info")
        data = tq.kv_batch_get(**at, select_fields=list(names))
        rendered: dict[str, torch.Tensor] = {}
        rows = []
        # A list, a stack or an array, by TransferQueue's backend.
        for uid, messages, reward, info in zip(*(list(data[name]) for name in names), strict=True):
            if uid not in rendered:
                rendered[uid] = torch.tensor(self._ids(messages, reward, info))
            rows.append(rendered[uid])
        prompts = torch.nested.as_nested_tensor(rows, layout=torch.jagged)
        tq.kv_batch_put(**at, fields=TensorDict({OWN_PROMPTS: prompts}, batch_size=len(batch)))

    def _ids(self, messages: Any, reward: Mapping[str, Any], info: Mapping[str, Any]) -> list[int]:
        own = teacher_messages(self._template, list(messages), reward["ground_truth"], info)
        if self._reads_labels and self._ledger is not None:
            record_label(self._ledger, str(info["index"]))
        return render_prompt(self._tokenizer, own, self._options)
