"""Start the servers of stage 2b's served models, and write their answers into verl's batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import transfer_queue as tq
from omegaconf import DictConfig
from tensordict import TensorDict
from verl.single_controller.ray import RayResourcePool

from verl_s2d.signals.in_verl.top_k_loss import IDS, LOG_PROBS
from verl_s2d.signals.top_k_kl import TopK
from verl_s2d.stages.opd.config import OpdConfig
from verl_s2d.stages.shared.distillation import model_key
from verl_s2d.teachers.frozen_model import FrozenModel
from verl_s2d.teachers.model_pair import check_served
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
                self._role_of.setdefault(model.checkpoint, role)
        self._servers: dict[FrozenModel, TeacherServers] = {}

    def check(self) -> None:
        """Raise UserError for a model that its servers would refuse once they load it."""
        for model, role in self._role_of.items():
            check_served(model.path, key=model_key(role), longest=self._longest, top_k=self._top_k)

    @property
    def _longest(self) -> int:
        return self._config.data.max_prompt_length + self._config.data.max_response_length

    @property
    def _top_k(self) -> int:
        """Return the number of likely tokens that servers answer with; 0 for the log-prob of the sampled one."""
        signal = self._settings.signal
        return signal.k if isinstance(signal, TopK) else 0

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
                longest=self._longest,
                top_k=self._top_k,
            )

    def write_log_probs(self, batch, role: str, field: str) -> None:
        """Write the served model's log-probs of the sampled tokens into a field of the batch, as verl's ref_log_prob.

        Args:
            batch: keys and partition in TransferQueue.
            role: of a model with placement `server`.
            field: (batch, response) float32, zero in rows without a sampled token.
        """
        rows = _Rows(batch)
        found = rows.spread(self._servers[self._settings.models[role].checkpoint].log_probs(rows.asked), torch.zeros)
        # Entry t of an answer is about token t + 1.
        rows.write({field: [x[p - 1 : p + r - 1] for x, p, r in zip(found, rows.prompts, rows.responses, strict=True)]})

    def write_top_k(self, batch, role: str) -> None:
        """Write what the served model knows of each position's next token into the batch, under verl's names.

        Args:
            batch, role: as for `write_log_probs`. The fields are (batch, tokens, k), prompt and response, and row t is
                about token t + 1.
        """
        rows = _Rows(batch)
        answers = self._servers[self._settings.models[role].checkpoint].top_k(rows.asked)
        ids = rows.spread([a.ids for a in answers], lambda n: torch.zeros(n, self._top_k, dtype=torch.int32))
        log_probs = rows.spread([a.log_probs for a in answers], lambda n: torch.zeros(n, self._top_k))
        rows.write({IDS: ids, LOG_PROBS: log_probs})


class _Rows:
    """The sequences of a batch, of which those with a sampled token are asked about.

    verl fills a batch up with rows whose mask is zero.

    Attributes:
        prompts, responses: tokens of each row's prompt and response.
        asked: token ids of each row that is asked about.
    """

    def __init__(self, batch):
        self._at = {"keys": batch.keys, "partition_id": batch.partition_id}
        data = tq.kv_batch_get(**self._at, select_fields=["prompts", "responses", "response_mask"])
        prompts, responses, masks = (data[name].unbind() for name in ("prompts", "responses", "response_mask"))
        self.prompts, self.responses = [len(row) for row in prompts], [len(row) for row in responses]
        self._places = [place for place, mask in enumerate(masks) if bool(mask.any())]
        self.asked = [torch.cat([prompts[place], responses[place]]).tolist() for place in self._places]

    def spread(self, answers: list[torch.Tensor], absent: Callable[[int], torch.Tensor]) -> list[torch.Tensor]:
        """Return the answer to each row; `absent` makes one of so many tokens for a row that was not asked about."""
        found = dict(zip(self._places, answers, strict=True))
        tokens = [p + r for p, r in zip(self.prompts, self.responses, strict=True)]
        return [found[place] if place in found else absent(count) for place, count in enumerate(tokens)]

    def write(self, columns: Mapping[str, list[torch.Tensor]]) -> None:
        """Write columns of one tensor a row."""
        nested = {name: torch.nested.as_nested_tensor(rows, layout=torch.jagged) for name, rows in columns.items()}
        tq.kv_batch_put(**self._at, fields=TensorDict(nested, batch_size=len(self.prompts)))
