"""Run the agent loops of a prompt together."""

from __future__ import annotations

import asyncio
import logging
import random
from copy import deepcopy
from typing import Any

import hydra
import numpy as np
import ray
import torch
import transfer_queue as tq
from tensordict import TensorDict
from verl import DataProto
from verl.experimental.agent_loop.agent_loop import (
    AgentLoopOutput,
    DictConfigWrap,
    ToolListWrap,
    _agent_loop_registry,
)
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ, AgentLoopWorkerTQ, apply_greedy_sampling_params

from verl_s2d.errors import Unscored
from verl_s2d.sampling.in_verl.group_client import GroupClient
from verl_s2d.sampling.in_verl.shared_writes import Entries, SharedWrites
from verl_s2d.sampling.in_verl.whole_groups import FAILED, UNSCORED

logger = logging.getLogger(__name__)
_LONGEST_REASON = 500
"""Characters of an error's text that a tag holds."""

_Worker: type = AgentLoopWorkerTQ.__ray_metadata__.modified_class


class GroupWorker(_Worker):
    """verl's worker, which makes one agent loop, one request, one scoring call and at most one write for each prompt.

    Images, verl's own distillation, and loops that are not known to ask the server once go verl's way: a loop with a
    `run` of its own says so with `asks_once = True`. Results are verl's, field by field.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._writes = SharedWrites()

    async def _run_prompt(self, prompt: dict, sampling_params: dict, trajectory: dict, trace: bool = False) -> None:
        if trace or self.processor is not None or self.distillation_enabled or not self._asks_once(prompt):
            await super()._run_prompt(prompt, sampling_params, trajectory, trace)
            return
        partition = "val" if trajectory["validate"] else "train"
        await self._tag(prompt["uid"], partition, {"status": "running"})
        try:
            outputs = await self._sample(prompt, sampling_params, validate=trajectory["validate"])
            await self._score(outputs, prompt)
            await self._write(outputs, prompt, partition)
            tag = {"status": "finished"}
        except Unscored as error:
            # A group without one of its rollouts would have another mean.
            logger.warning("prompt %s is dropped: unscored: %s", prompt["uid"], reason(error))
            tag = {"status": "failure", UNSCORED: reason(error)}
        except Exception as error:
            logger.exception("prompt %s failed", prompt["uid"])
            tag = {"status": "failure", FAILED: reason(error)}
        await self._tag(prompt["uid"], partition, tag)

    async def _tag(self, uid: str, partition: str, tag: dict[str, Any]) -> None:
        await self._writes.write(Entries(partition, [uid], [tag]))

    async def _run_agent_loop(self, sampling_params: dict, trajectory: dict, **named: Any) -> Any:
        """Run a rollout verl's way, and note why the verifier could not judge it."""
        try:
            return await super()._run_agent_loop(sampling_params, trajectory, **named)
        except Unscored as error:
            put = {"key": named["uid"], "partition_id": "val" if trajectory["validate"] else "train"}
            await tq.async_kv_put(**put, tag={UNSCORED: reason(error)})
            raise

    def _asks_once(self, prompt: dict) -> bool:
        """Report whether the prompt's agent loops each ask the server exactly once: the group waits for all of them."""
        entry = _agent_loop_registry.get(prompt["agent_name"])
        loop = hydra.utils.get_class(entry["_target_"]) if entry is not None else None
        return loop is not None and (
            getattr(loop, "run", None) is SingleTurnAgentLoop.run or getattr(loop, "asks_once", False)
        )

    async def _sample(self, prompt: dict, sampling_params: dict, *, validate: bool) -> list[AgentLoopOutput]:
        """Run the prompt's agent loops; the prompt may change verl's number of them and its temperature."""
        rollout = self.config.actor_rollout_ref.rollout
        count = prompt.pop("__rollout_n__", rollout.val_kwargs.n if validate else rollout.n)
        sampling_params = dict(sampling_params)
        if not prompt.pop("__do_sample__", True) and not validate:
            apply_greedy_sampling_params(sampling_params)
        fields = {name: value for name, value in prompt.items() if name != "agent_name"}
        loop = hydra.utils.instantiate(
            config=_agent_loop_registry[prompt["agent_name"]],
            trainer_config=DictConfigWrap(config=self.config),
            server_manager=GroupClient(self.llm_client, count),
            tokenizer=self.tokenizer,
            processor=self.processor,
            hf_model_type=self.hf_model_type,
            dataset_cls=self.dataset_cls,
            data_config=DictConfigWrap(self.config.data),
            tools=ToolListWrap(self.tools),
        )
        # A loop that fails before it has asked ends the others, which would wait for it.
        async with asyncio.TaskGroup() as group:
            runs = [group.create_task(loop.run(sampling_params, session_id=i, **fields)) for i in range(count)]
        return [run.result() for run in runs]  # no limit: the group has waited for them

    async def _score(self, outputs: list[AgentLoopOutput], prompt: dict) -> None:
        """Have a reward worker score those that their loop has not scored."""
        if self.reward_loop_worker_handles is None or any(output.reward_score is not None for output in outputs):
            return
        began = asyncio.get_running_loop().time()
        sequences = [_sequence(output) for output in outputs]
        padded = {
            name: torch.nn.utils.rnn.pad_sequence([each[name] for each in sequences], batch_first=True)
            for name in sequences[0]
        }
        # verl's reward managers write into a rollout's `extra_info`.
        each: dict[str, list[Any]] = {name: [deepcopy(value) for _ in outputs] for name, value in prompt.items()}
        each |= {"session_id": list(range(len(outputs))), "__num_turns__": [output.num_turns for output in outputs]}
        each |= {"tool_extra_fields": [output.extra_fields for output in outputs]}
        data = DataProto(
            batch=TensorDict(padded, batch_size=len(outputs)),
            non_tensor_batch={name: _objects(values) for name, values in each.items()},
        )
        scores = await random.choice(self.reward_loop_worker_handles).compute_score_batch.remote(data)
        seconds = asyncio.get_running_loop().time() - began
        for output, score in zip(outputs, scores, strict=True):
            output.reward_score = score["reward_score"]
            output.extra_fields["reward_extra_info"] = score["reward_extra_info"]
            output.metrics.compute_score = seconds

    async def _write(self, outputs: list[AgentLoopOutput], prompt: dict, partition: str) -> None:
        """Put the rollouts into TransferQueue under verl's keys, {uid}_{rollout}_0."""
        keys, fields, tags = [], [], []
        shared = {name: value for name, value in prompt.items() if name not in ("agent_name", "multi_modal_data")}
        for place, output in enumerate(outputs):
            whole = _sequence(output)
            field = {**output.as_dict(), **shared, "session_id": place}
            field.pop("multi_modal_data", None)
            field |= {"loss_mask": field["response_mask"], "multi_modal_inputs": {}}
            field |= {name: whole[name] for name in ("input_ids", "position_ids")}
            prompt_tokens, response_tokens = len(output.prompt_ids), len(output.response_ids)
            versions = {name: field["extra_fields"].get(name) for name in ("min_global_steps", "max_global_steps")}
            keys.append(f"{prompt['uid']}_{place}_0")
            fields.append(field)
            tags.append(
                {
                    "status": "success",
                    "prompt_len": prompt_tokens,
                    "response_len": response_tokens,
                    "seq_len": prompt_tokens + response_tokens,
                    "global_steps": prompt["global_steps"],
                    **versions,
                }
            )
        await self._writes.write(Entries(partition, keys, tags, fields))


def reason(error: BaseException) -> str:
    """Describe an error in a line; of one that Ray hands on, the error of the other process."""
    error = getattr(error, "cause", None) or error
    text = " ".join(str(error).split())[:_LONGEST_REASON]
    return text if isinstance(error, Unscored) else f"{type(error).__name__}: {text}"


def _sequence(output: AgentLoopOutput) -> dict[str, torch.Tensor]:
    """Return prompt and response of a text rollout as verl's tensors, (tokens,) each."""
    whole = torch.tensor([*output.prompt_ids, *output.response_ids], dtype=torch.int64)
    return {
        "prompts": whole[: len(output.prompt_ids)],
        "responses": whole[len(output.prompt_ids) :],
        "input_ids": whole,
        "attention_mask": torch.ones_like(whole),
        "position_ids": torch.arange(len(whole)),
    }


def _objects(values: list[Any]) -> np.ndarray:
    """Keep values as they are: numpy would make arrays of lists of equal length."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


class GroupManager(AgentLoopManagerTQ):
    """verl's manager of those workers."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class = ray.remote(GroupWorker)
