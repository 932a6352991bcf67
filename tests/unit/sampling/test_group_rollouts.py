"""A prompt's rollouts, sampled, scored and written together, are verl's, field by field; and one failure fails all."""

from __future__ import annotations

import asyncio
import pickle

import pytest
import torch
import transfer_queue as tq
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from ray.exceptions import RayTaskError
from tensordict import NonTensorData, TensorDict
from verl.experimental.agent_loop import agent_loop
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.experimental.reward_loop.reward_loop import RewardLoopWorker
from verl.utils.tensordict_utils import get_tensordict
from verl.workers.rollout.llm_server import LLMServerClient
from verl.workers.rollout.replica import RolloutReplicaRegistry, TokenOutput, get_rollout_replica_class

from tests.support import tiny
from verl_s2d.errors import Unscored
from verl_s2d.sampling.in_verl import group_rollouts
from verl_s2d.sampling.in_verl.group_client import GroupClient
from verl_s2d.sampling.in_verl.group_rollouts import GroupWorker, _Worker
from verl_s2d.sampling.in_verl.samples_groups import EXECUTOR_KEY, MANAGER_KEY, SamplesGroups
from verl_s2d.verl_settings.overrides import hydra_arguments, merge, overlay

SCORING = """
def compute_score(data_source, solution_str, ground_truth, extra_info=None, **_):
    return {"score": len(solution_str) / 7, "acc": solution_str == ground_truth, "seen": sorted(extra_info)}
"""
PROBLEMS = [("1 + 2 =", "3"), ("4 + 4 =", "8")]
SAMPLES = 3


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    directory = tmp_path_factory.mktemp("group")
    (directory / "scoring.py").write_text(SCORING)
    chosen = {
        "actor_rollout_ref.model.path": str(tiny.write_model(directory / "model")),
        "data.max_prompt_length": 16,
        "data.max_response_length": 4,
        "actor_rollout_ref.rollout.n": SAMPLES,
        "actor_rollout_ref.rollout.val_kwargs.n": 2,
        "actor_rollout_ref.rollout.calculate_log_probs": True,
        "reward.custom_reward_function.path": str(directory / "scoring.py"),
        "trainer.n_gpus_per_node": 1,
    }
    with initialize_config_module("verl.trainer.config", version_base=None):
        found = compose("ppo_trainer", hydra_arguments(merge(overlay("grpo"), overlay("cpu"), chosen)))
    OmegaConf.resolve(found)
    return found


class Remote:
    """Calls a method as Ray does: with copies of the arguments, and a result to wait for."""

    def __init__(self, method, calls):
        self._method, self._calls = method, calls

    def remote(self, *arguments, **named):
        self._calls.append(self._method.__name__)
        copies = pickle.loads(pickle.dumps((arguments, named)))
        return asyncio.ensure_future(self._method(*copies[0], **copies[1]))


class Server:
    """Answers with the next of the prompt's responses, of 1 to max_tokens ids."""

    def __init__(self):
        self._asked = {}

    async def generate(self, *, prompt_ids, sampling_params, **_):
        await asyncio.sleep(0)
        number = self._asked[tuple(prompt_ids)] = self._asked.get(tuple(prompt_ids), 0) + 1
        ids = [5 + number + place for place in range(number)]
        assert sampling_params["temperature"] in (0, 1.0)
        return TokenOutput(
            token_ids=ids,
            log_probs=[-0.5 * number] * len(ids) if sampling_params["logprobs"] else None,
            stop_reason="completed",
            num_preempted=None,
            extra_fields={"global_steps": 7, "num_cached_tokens": 0},
        )

    async def generate_group(self, requests):
        if any(request["prompt_ids"][-1] == 0 for request in requests):
            raise RuntimeError("the server is gone")
        return [await self.generate(**request) for request in requests]


class Handles:
    """The actors that a worker calls, and the names of the calls."""

    def __init__(self, config):
        self.calls, server, rewards = [], Server(), RewardLoopWorker(config)
        handle = type("Handle", (), {})
        self.server, self.reward, self.balancer = handle(), handle(), handle()
        for owner, target, names in (
            (self.server, server, ("generate", "generate_group")),
            (self.reward, rewards, ("compute_score", "compute_score_batch")),
            (
                self.balancer,
                self,
                ("require_acquire_fields", "require_release_fields", "acquire_server", "release_server"),
            ),
        ):
            for name in names:
                setattr(owner, name, Remote(getattr(target, name), self.calls))

    async def require_acquire_fields(self):
        return []

    require_release_fields = require_acquire_fields

    async def acquire_server(self, request_id):
        return "address", None

    async def release_server(self, server_id):
        return None


class Client(LLMServerClient):
    """verl's, whose balancer cannot send a handle that no Ray made."""

    def __init__(self, config, handles):
        super().__init__(config, handles.balancer)
        self._server = handles.server

    async def _acquire_server(self, request_id, **extra):
        return (await super()._acquire_server(request_id, **extra))[0], self._server


class OwnLoop(SingleTurnAgentLoop):
    """A loop of one turn that a recipe or a user registers."""


class TwoTurns(agent_loop.AgentLoopBase):
    """Asks twice, and keeps the last answer."""

    async def run(self, sampling_params, **fields):
        outputs = []
        for _ in range(2):
            loop = SingleTurnAgentLoop.run
            outputs.append(await loop(self, sampling_params, **fields))
        return outputs[-1]

    prompt_length = property(lambda self: self.rollout_config.prompt_length)
    response_length = property(lambda self: self.rollout_config.response_length)


class Sometimes(SingleTurnAgentLoop):
    """Answers the first rollout of a prompt by itself."""

    async def run(self, sampling_params, **fields):
        if fields["session_id"]:
            return await super().run(sampling_params, **fields)
        ids = await self.ct_build_initial_tokens(list(fields["raw_prompt"]))
        metrics = {"generate_sequences": 0.0, "num_preempted": -1}
        return agent_loop.AgentLoopOutput(
            prompt_ids=ids, response_ids=[9], response_mask=[1], response_logprobs=[-1.0], num_turns=2, metrics=metrics
        )


class Queue:
    """Keeps what workers put into TransferQueue."""

    def __init__(self, monkeypatch):
        self.rows, self.statuses, self.writes = {}, [], 0
        monkeypatch.setattr(tq, "init", lambda *_: None)
        monkeypatch.setattr(tq, "async_kv_put", self.put)
        monkeypatch.setattr(tq, "async_kv_batch_put", self.put_batch)

    async def put(self, *, key, partition_id, tag):
        self.statuses.append((key, partition_id, tag["status"]))

    async def put_batch(self, *, keys, fields, tags, partition_id):
        if fields is None:
            self.statuses += [(key, partition_id, tag["status"]) for key, tag in zip(keys, tags, strict=True)]
            return
        self.writes += 1
        for row, (key, tag) in enumerate(zip(keys, tags, strict=True)):
            self.rows[key] = (plain(fields[row]), tag, partition_id)

    def of_responses(self):
        """Rows by what does not depend on the order in which rollouts asked: prompt and response."""
        found = {}
        for key, (fields, tag, partition) in self.rows.items():
            fields = {name: value for name, value in fields.items() if name not in ("session_id", "metrics")}
            found[key.split("_")[0], tuple(fields["responses"])] = (fields, tag, partition)
        assert len(found) == len(self.rows)
        return found


def plain(value):
    if isinstance(value, TensorDict | dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, torch.Tensor):
        return value.tolist()
    return plain(value.data) if isinstance(value, NonTensorData) else value


def prompts(**more):
    count = len(PROBLEMS)
    columns = {
        "raw_prompt": [[{"role": "user", "content": text}] for text, _ in PROBLEMS],
        "data_source": ["sums"] * count,
        "reward_model": [{"style": "rule", "ground_truth": truth} for _, truth in PROBLEMS],
        "extra_info": [{"index": f"sum-{number}"} for number in range(count)],
        "index": list(range(count)),
        "uid": [f"uid{number}" for number in range(count)],
        **{name: [value] * count for name, value in more.items()},
    }
    return get_tensordict(columns, {"global_steps": 3})


def sampled(kind, config, monkeypatch, **more):
    """Run a worker on all problems; return the queue and the calls of actors."""
    queue = Queue(monkeypatch)

    async def run():
        handles = Handles(config)
        worker = kind(config, Client(config, handles), None, [handles.reward])
        await worker.generate_sequences(prompts(**more))
        await asyncio.gather(*worker.background_tasks)
        return handles.calls

    return queue, asyncio.run(run())


@pytest.mark.parametrize("more", [{}, {"__rollout_n__": 2}, {"__do_sample__": False}, {"agent_name": "own"}])
def test_rollouts_are_those_of_verl(config, monkeypatch, more):
    if "agent_name" in more:
        loop = {"_target_": f"{OwnLoop.__module__}.{OwnLoop.__name__}"}
        monkeypatch.setitem(agent_loop._agent_loop_registry, "own", loop)
    expected, calls = sampled(_Worker, config, monkeypatch, **more)
    found, fewer = sampled(GroupWorker, config, monkeypatch, **more)
    samples = more.get("__rollout_n__", SAMPLES)
    rows, theirs = found.of_responses(), expected.of_responses()
    assert rows.keys() == theirs.keys()
    for key, (fields, tag, partition) in theirs.items():
        for name, value in fields.items():
            assert rows[key][0][name] == value, name
        assert rows[key] == (fields, tag, partition)
    assert found.rows.keys() == expected.rows.keys() and len(found.rows) == samples * len(PROBLEMS)
    assert sorted(found.statuses) == sorted(expected.statuses)
    assert found.writes <= len(PROBLEMS) and expected.writes == samples * len(PROBLEMS)
    for one, all_of_prompt in (("generate", "generate_group"), ("compute_score", "compute_score_batch")):
        assert calls.count(one) == samples * len(PROBLEMS) and fewer.count(all_of_prompt) == len(PROBLEMS)
        assert one not in fewer
    assert fewer.count("acquire_server") == fewer.count("release_server") == len(PROBLEMS)


@pytest.mark.parametrize(("name", "asked"), [("TwoTurns", 2 * SAMPLES), ("Sometimes", SAMPLES - 1)])
def test_loops_that_may_ask_more_or_less_than_once_go_verls_way(config, monkeypatch, name, asked):
    loop = {"_target_": f"{TwoTurns.__module__}.{name}"}
    monkeypatch.setitem(agent_loop._agent_loop_registry, "turns", loop)
    queue, calls = sampled(GroupWorker, config, monkeypatch, agent_name="turns")
    assert len(queue.rows) == SAMPLES * len(PROBLEMS) and "generate_group" not in calls
    assert calls.count("generate") == asked * len(PROBLEMS)


def test_a_failure_fails_the_whole_prompt_and_no_other(config, monkeypatch):
    queue = Queue(monkeypatch)

    async def run():
        handles = Handles(config)
        worker = GroupWorker(config, Client(config, handles), None, [handles.reward])
        original = worker._sample

        async def sample(prompt, *arguments, **named):
            if prompt["uid"] == "uid1":
                raise RuntimeError("the server is gone")
            return await original(prompt, *arguments, **named)

        worker._sample = sample
        await worker.generate_sequences(prompts())
        await asyncio.gather(*worker.background_tasks)

    asyncio.run(run())
    assert ("uid1", "train", "failure") in queue.statuses and ("uid0", "train", "finished") in queue.statuses
    assert len(queue.rows) == SAMPLES


UNJUDGED = """
from verl_s2d.errors import Unscored
def compute_score(solution_str, ground_truth, **_):
    if ground_truth == "8" and len(solution_str) > 3:
        raise Unscored("the service is down")
    return 1.0
"""


def test_a_group_with_an_unscored_rollout_is_not_written_and_fails_without_a_traceback(
    config, monkeypatch, tmp_path, watch_log
):
    """verl's own reward worker and manager call the verifier, which could score one rollout of the group."""
    log = watch_log(group_rollouts, "logger")
    (tmp_path / "scoring.py").write_text(UNJUDGED)
    config = OmegaConf.create(OmegaConf.to_container(config))
    config.reward.custom_reward_function.path = str(tmp_path / "scoring.py")
    queue, _ = sampled(GroupWorker, config, monkeypatch)
    assert {key.split("_")[0] for key in queue.rows} == {"uid0"} and len(queue.rows) == SAMPLES
    assert ("uid1", "train", "failure") in queue.statuses and ("uid0", "train", "finished") in queue.statuses
    assert "uid1 is dropped: unscored: the service is down" in log.getvalue() and "Traceback" not in log.getvalue()


def test_ray_hands_unscored_on():
    found = RayTaskError("compute_score_batch", "traceback", Unscored("down")).as_instanceof_cause()
    assert isinstance(found, Unscored) and str(found.cause) == "down"


def test_what_a_loop_asks_with_reaches_the_server(config):
    """Also arguments of its own; those that verl's loop leaves empty for text are left out."""
    seen = []

    async def generate_group(requests):
        seen.extend(requests)
        return [TokenOutput(token_ids=[5], extra_fields={}) for _ in requests]

    async def run():
        handles = Handles(config)
        handles.server.generate_group = Remote(generate_group, [])
        client = GroupClient(Client(config, handles), 1)
        await client.generate("id", prompt_ids=[5], sampling_params={"n": 1}, image_data=None, kv=3, priority=0)

    asyncio.run(run())
    (request,) = seen
    assert request.pop("request_id") and request == {"prompt_ids": [5], "sampling_params": {"n": 1}, "kv": 3}


def test_a_server_that_fails_fails_every_request_and_is_released(config):
    async def run():
        handles = Handles(config)
        client = GroupClient(Client(config, handles), 2)
        asks = [client.generate("id", prompt_ids=[5, 0], sampling_params={}) for _ in range(2)]
        answers = await asyncio.gather(*asks, return_exceptions=True)
        assert [str(answer) for answer in answers] == ["the server is gone"] * 2
        assert handles.calls.count("release_server") == 1
        with pytest.raises(RuntimeError, match="one asks again"):
            await client.generate("id", prompt_ids=[5], sampling_params={})

    asyncio.run(run())


class Configured:
    """A trainer that only has a configuration."""

    def __init__(self, config):
        self.config = config


class Trainer(SamplesGroups, Configured):
    """The same, which samples the rollouts of a prompt together."""


@pytest.mark.parametrize(
    ("changes", "manager"),
    [
        ({}, "verl_s2d.sampling.in_verl.group_rollouts.GroupManager"),
        ({MANAGER_KEY: "mine.Manager"}, "mine.Manager"),
        ({"actor_rollout_ref.rollout.name": "sglang"}, None),
    ],
)
def test_the_manager_is_ours_where_vllm_samples_and_no_other_is_named(config, monkeypatch, changes, manager):
    monkeypatch.setattr(RolloutReplicaRegistry, "_registry", dict(RolloutReplicaRegistry._registry))
    config = OmegaConf.create(OmegaConf.to_container(config))
    for key, value in changes.items():
        OmegaConf.update(config, key, value, force_add=True)
    Trainer(config)
    assert OmegaConf.select(config, MANAGER_KEY) == manager
    served = get_rollout_replica_class("vllm")
    assert (served.__name__ == "GroupReplica") == (manager is not None and "GroupManager" in manager)


@pytest.mark.parametrize(
    ("changes", "executor"),
    [
        ({}, "vllm.v1.executor.uniproc_executor.UniProcExecutor"),
        ({EXECUTOR_KEY: "mp"}, "mp"),
        ({"trainer.device": "cuda"}, None),
        ({"actor_rollout_ref.rollout.name": "sglang"}, None),
        ({"actor_rollout_ref.rollout.tensor_model_parallel_size": 2}, None),
        ({"actor_rollout_ref.rollout.data_parallel_size": 2}, None),
    ],
)
def test_an_engine_of_one_worker_on_a_cpu_has_no_process_for_it(config, monkeypatch, changes, executor):
    monkeypatch.setattr(RolloutReplicaRegistry, "_registry", dict(RolloutReplicaRegistry._registry))
    config = OmegaConf.create(OmegaConf.to_container(config))
    for key, value in ({"trainer.device": "cpu"} | changes).items():
        OmegaConf.update(config, key, value, force_add=True)
    Trainer(config)
    assert OmegaConf.select(config, EXECUTOR_KEY) == executor
