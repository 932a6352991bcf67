"""Teacher servers: answers in the order of the sequences, work divided by tokens, and every wait with its limit."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import ray
import torch
from ray.exceptions import RayActorError

from verl_s2d.teachers.frozen_model import FrozenModel
from verl_s2d.teachers.teacher_servers import TeacherServerError, TeacherServers

SEQUENCES = [[1, 2, 3], [4, 5], [6, 7, 8, 9], [3]]


class Handle:
    """A server whose answer about a token is the token; what it is asked is its reference."""

    def __init__(self, asked: list):
        self.generate = SimpleNamespace(remote=lambda **request: asked.append(request) or (id(self), len(asked) - 1))


@pytest.fixture
def servers(monkeypatch):
    """Two servers that answer the newest question first."""
    asked: list[dict] = []
    found = object.__new__(TeacherServers)
    model = FrozenModel(path="t", placement="server", server={"wait_minutes": 0.002})
    found._role, found._settings, found._k = "teacher", model.servers, 0
    found._handles = [Handle(asked), Handle(asked)]

    def get(reference, timeout):
        ids = asked[reference[1]]["prompt_ids"]
        return SimpleNamespace(
            extra_fields={"prompt_ids": [[x] for x in ids], "prompt_logprobs": [[-float(x)] for x in ids]}
        )

    monkeypatch.setattr(ray, "wait", lambda pending, timeout: ([pending[-1]], pending[:-1]))
    monkeypatch.setattr(ray, "get", get)
    return found, asked


def test_answers_come_in_the_order_of_the_sequences_and_work_is_divided_by_tokens(servers):
    found, asked = servers
    answers = found.log_probs(SEQUENCES)
    for sequence, answer in zip(SEQUENCES, answers, strict=True):
        assert torch.equal(answer, -torch.tensor(sequence).float())
    assert [request["prompt_ids"] for request in asked] == [[6, 7, 8, 9], [3], [1, 2, 3], [4, 5]], "4 + 1, 3 + 2 tokens"
    assert all(r["sampling_params"]["prompt_logprobs"] == 0 for r in asked)
    assert all(r["sampling_params"]["temperature"] == 1 for r in asked)


def test_late_answers_are_an_error_that_says_how_many_and_what_to_do(servers, monkeypatch):
    monkeypatch.setattr(ray, "wait", lambda pending, timeout: ([], pending))
    with pytest.raises(TeacherServerError, match=r"s2d.teacher: 4 of 4 sequences .* 0.002 minutes.*wait_minutes"):
        servers[0].log_probs(SEQUENCES)


def test_a_dead_server_is_an_error_and_no_wait(servers, monkeypatch):
    def dead(reference, timeout):
        raise RayActorError(error_msg="The actor died unexpectedly.")

    monkeypatch.setattr(ray, "get", dead)
    with pytest.raises(TeacherServerError, match=r"a server failed: RayActorError: .*The stage resumes from"):
        servers[0].log_probs(SEQUENCES)


@pytest.mark.parametrize("fields", [{}, {"prompt_ids": [[1]], "prompt_logprobs": [[-1.0]]}])
def test_an_answer_without_every_position_is_an_error(servers, monkeypatch, fields):
    monkeypatch.setattr(ray, "get", lambda reference, timeout: SimpleNamespace(extra_fields=fields))
    with pytest.raises(TeacherServerError, match=r"gave up a request|1 positions for 2 tokens"):
        servers[0].log_probs([[4, 5]])


def test_servers_that_do_not_start_are_an_error_within_the_limit(servers):
    found, _ = servers
    with pytest.raises(TeacherServerError, match=r"did not start within 0\.002 minutes"):
        found._within_limit(lambda: time.sleep(5), "the servers did not start")

    def out_of_memory():
        raise RuntimeError("Engine core initialization failed.\nNo available memory for the cache blocks.")

    with pytest.raises(TeacherServerError, match=r"RuntimeError: No available memory .*gpu_memory_utilization"):
        found._within_limit(out_of_memory, "the servers did not start")
    assert found._within_limit(lambda: 7, "") == 7
