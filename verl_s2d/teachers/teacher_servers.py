"""Ask a frozen model that sits on vLLM servers of its own: verl's teacher servers, without verl's distillation.

verl's agent loops would ask them about each response, for a loss of verl's. Here the trainer asks about a whole batch,
where verl computes the reference policy's log-probs, so both placements of a teacher answer at the same point.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from threading import Thread
from typing import Any, NamedTuple
from uuid import uuid4

import ray
import torch
from omegaconf import DictConfig
from ray.exceptions import RayError
from verl.experimental.teacher_loop.teacher_model import TeacherModelManager
from verl.single_controller.ray import RayResourcePool
from verl.workers.config import DistillationConfig, DistillationTeacherModelConfig, RolloutConfig

from verl_s2d.teachers.frozen_model import FrozenModel

_SEQUENCES_AT_ONCE = 1024
"""vLLM's max_num_seqs, verl's default for teachers."""


class TeacherServerError(RuntimeError):
    """A server did not start, died, or did not answer in time."""


class ServerAnswer(NamedTuple):
    """A server's answer about each position's next token: ids int32 and log-probs float32, (tokens, k or 1)."""

    ids: torch.Tensor
    log_probs: torch.Tensor


class TeacherServers:
    """vLLM servers of one frozen model.

    Args:
        model: with placement `server`.
        role: its role, for names and messages.
        pool: the servers' GPUs, one placement group a server.
        rollout: the student's section actor_rollout_ref.rollout, for the numbers' format on this device.
        longest: tokens of the longest sequence, prompt and response.
        top_k: number of likely tokens to answer with; 0 for log-probs of the sequence's own tokens.

    Raises:
        TeacherServerError: the servers do not start, or not in time.
    """

    def __init__(
        self, model: FrozenModel, *, role: str, pool: RayResourcePool, rollout: DictConfig, longest: int, top_k: int
    ):
        self._role, self._settings, self._k = role, model.servers, top_k
        config = _model_config(model, role, rollout, longest, top_k)
        tensor = self._settings.tensor_model_parallel_size
        placed = DistillationConfig(n_gpus_per_node=tensor, nnodes=self._settings.num_replicas)
        self._handles = self._within_limit(
            lambda: TeacherModelManager(placed, config, pool).server_handles,
            "the servers did not start",
        )

    def log_probs(self, sequences: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Compute log-probs of each sequence's own tokens.

        Returns:
            (tokens,) float32 of each sequence; entry t is that of token t + 1, and the last entry is undefined.

        Raises:
            TeacherServerError: a server died, or the answers are late.
        """
        return [answer.log_probs[:, 0] for answer in self._ask(sequences)]

    def top_k(self, sequences: Sequence[Sequence[int]]) -> list[ServerAnswer]:
        """Compute the k most likely tokens at each position; row t is about token t + 1, the last row is undefined.

        Raises:
            TeacherServerError: a server died, or the answers are late.
        """
        return self._ask(sequences)

    def _ask(self, sequences: Sequence[Sequence[int]]) -> list[ServerAnswer]:
        deadline = time.monotonic() + 60 * self._settings.wait_minutes
        pending = {
            self._handles[server].generate.remote(
                prompt_ids=list(sequences[place]),
                # Prompt log-probs are those of the model's own logits: a sampling temperature does not change them.
                sampling_params={"max_tokens": 1, "temperature": 1.0, "prompt_logprobs": self._k, "detokenize": False},
                request_id=uuid4().hex,
            ): place
            for server, places in enumerate(_shares(sequences, len(self._handles)))
            for place in places
        }
        answers: dict[int, ServerAnswer] = {}
        while pending:
            # One at a time: an answer is a list of Python numbers, several times the size of its tensor.
            done, _ = ray.wait(list(pending), timeout=max(0.0, deadline - time.monotonic()))
            if not done:
                raise self._late(f"{len(pending)} of {len(sequences)} sequences are not scored")
            place = pending.pop(done[0])
            answers[place] = self._read(done[0], len(sequences[place]))
        return [answers[place] for place in range(len(sequences))]

    def _read(self, answer: ray.ObjectRef, tokens: int) -> ServerAnswer:
        try:
            found = ray.get(answer, timeout=60).extra_fields
        except RayError as error:
            raise self._failed("a server failed", error) from error
        if "prompt_logprobs" not in found:
            raise self._failed("a server gave up a request", None)
        ids = torch.tensor(found["prompt_ids"], dtype=torch.int32)
        log_probs = torch.tensor(found["prompt_logprobs"], dtype=torch.float32)
        if not len(ids) == len(log_probs) == tokens:
            raise self._failed(f"a server answered {len(ids)} positions for {tokens} tokens", None)
        return ServerAnswer(ids, log_probs)

    def _within_limit(self, start: Callable[[], Any], problem: str) -> Any:
        """Return start(), which has no limit of its own: verl waits for placement groups and servers forever."""
        found: list[Any] = []

        def run() -> None:
            try:
                found.append(start())
            except Exception as error:  # handed to the caller, whatever verl and vLLM raise
                found.append(error)

        thread = Thread(target=run, daemon=True)
        thread.start()
        thread.join(60 * self._settings.wait_minutes)
        if not found:
            raise self._late(problem)
        if isinstance(found[0], Exception):
            raise self._failed(problem, found[0]) from found[0]
        return found[0]

    def _late(self, problem: str) -> TeacherServerError:
        return TeacherServerError(
            f"{self._name}: {problem} within {self._settings.wait_minutes:g} minutes. Look for the servers in the log "
            "(vLLMHttpServer) and for free GPUs (ray status). If they work and are slow, raise server.wait_minutes or "
            "server.num_replicas."
        )

    def _failed(self, problem: str, error: BaseException | None) -> TeacherServerError:
        lines = str(error or "").strip().splitlines()
        told = f": {type(error).__name__}: {lines[-1]}" if lines else ""
        return TeacherServerError(
            f"{self._name}: {problem}{told}. The reason stands further up in the log, in the lines of vLLMHttpServer "
            "and EngineCore. Out of memory: lower server.gpu_memory_utilization or server.max_num_batched_tokens, or "
            "raise server.tensor_model_parallel_size. The stage resumes from its last checkpoint."
        )

    @property
    def _name(self) -> str:
        return "s2d.teacher" if self._role == "teacher" else f"s2d.models.{self._role}"


def _model_config(
    model: FrozenModel, role: str, rollout: DictConfig, longest: int, top_k: int
) -> DistillationTeacherModelConfig:
    servers = model.servers
    # A request samples one token, which nobody reads.
    context = longest + 1
    tokens = max(servers.max_num_batched_tokens, context)
    inference = RolloutConfig(
        name=rollout.name,
        dtype=rollout.dtype,
        enforce_eager=True,
        free_cache_engine=False,
        enable_sleep_mode=False,
        tensor_model_parallel_size=servers.tensor_model_parallel_size,
        gpu_memory_utilization=servers.gpu_memory_utilization,
        max_num_batched_tokens=tokens,
        max_num_seqs=min(_SEQUENCES_AT_ONCE, tokens),
        max_model_len=context,
        prompt_length=longest,
        response_length=1,
        load_format="auto",
        skip_tokenizer_init=True,
        engine_kwargs={"vllm": {"max_logprobs": max(1, top_k)}},
    )
    return DistillationTeacherModelConfig(
        key=role, model_path=model.path, num_replicas=servers.num_replicas, inference=inference
    )


def _shares(sequences: Sequence[Sequence[int]], servers: int) -> list[list[int]]:
    """Divide sequences over servers by tokens; returns the indices of each server's sequences, the longest first."""
    shares: list[list[int]] = [[] for _ in range(servers)]
    tokens = [0] * servers
    for place in sorted(range(len(sequences)), key=lambda place: len(sequences[place]), reverse=True):
        server = tokens.index(min(tokens))
        shares[server].append(place)
        tokens[server] += len(sequences[place])
    return shares
