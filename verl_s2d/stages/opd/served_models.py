"""Start the servers of stage 2b's served models, and write their answers into verl's batches."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import transfer_queue as tq
from omegaconf import DictConfig
from tensordict import TensorDict
from verl.single_controller.ray import RayResourcePool

from verl_s2d.stages.opd.config import OpdConfig
from verl_s2d.teachers.frozen_model import FrozenModel
from verl_s2d.teachers.teacher_servers import TeacherServers


class ServedModels:
    """The frozen models with placement `server`; equal ones share their servers.

    Args:
        settings: section `s2d`.
        config: verl's configuration.
    """

    def __init__(self, settings: OpdConfig, config: DictConfig):
        self._settings, self._config = settings, config
        self._role_of: dict[FrozenModel, str] = {}
        for role, model in settings.models.items():
            if model.servers is not None:
                self._role_of.setdefault(model, role)
        self._servers: dict[FrozenModel, TeacherServers] = {}

    def pools(self) -> dict[str, list[int]]:
        """Map the name of each model's pool -> GPUs of each of its servers, in verl's form of a pool."""
        return {
            f"served_{role}": [model.servers.tensor_model_parallel_size] * model.servers.num_replicas
            for model, role in self._role_of.items()
        }

    def start(self, pools: Mapping[str, RayResourcePool]) -> None:
        """Start all servers; `pools` are those of `pools()`, created.

        Raises:
            TeacherServerError: servers do not start, or not in time.
        """
        for model, role in self._role_of.items():
            self._servers[model] = TeacherServers(
                model,
                role=role,
                pool=pools[f"served_{role}"],
                rollout=self._config.actor_rollout_ref.rollout,
                longest=self._config.data.max_prompt_length + self._config.data.max_response_length,
                top_k=0,
            )

    def write_log_probs(self, batch, role: str, field: str) -> None:
        """Write the served model's log-probs of the sampled tokens into a field of the batch, as verl's ref_log_prob.

        Args:
            batch: keys and partition in TransferQueue.
            role: of a model with placement `server`.
            field: (batch, response) float32, zero in rows without a sampled token.
        """
        at = {"keys": batch.keys, "partition_id": batch.partition_id}
        data = tq.kv_batch_get(**at, select_fields=["prompts", "responses", "response_mask"])
        rows = [list(data[name].unbind()) for name in ("prompts", "responses", "response_mask")]
        # verl fills a batch up with rows whose mask is zero.
        asked = [place for place, mask in enumerate(rows[2]) if bool(mask.any())]
        sequences = [torch.cat([rows[0][place], rows[1][place]]).tolist() for place in asked]
        answers = dict(zip(asked, self._servers[self._settings.models[role]].log_probs(sequences), strict=True))
        written = []
        for place, (prompt, response) in enumerate(zip(*rows[:2], strict=True)):
            # Entry t of an answer is about token t + 1.
            of_response = slice(len(prompt) - 1, len(prompt) + len(response) - 1)
            written.append(answers[place][of_response] if place in answers else torch.zeros(len(response)))
        nested = torch.nested.as_nested_tensor(written, layout=torch.jagged)
        tq.kv_batch_put(**at, fields=TensorDict({field: nested}, batch_size=len(batch)))
