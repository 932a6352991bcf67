"""The process that makes prompts: proposals, answers and hint-delta of a tiny model, with a played sampler."""

from __future__ import annotations

import json
import random
from typing import ClassVar

import pyarrow.parquet as pq
import pytest
import torch

from tests.support.tiny import WORDS, write_model, write_problems
from verl_s2d import arguments
from verl_s2d.data.unlabelled import read_pool
from verl_s2d.errors import UserError
from verl_s2d.sampling import shard_worker
from verl_s2d.sampling.engine import Completion
from verl_s2d.sampling.prompts import prompt_seed
from verl_s2d.stages.g_zero import propose


class PlayedSampler:
    """Samples words at random, and scores prompts with the model itself, in float32."""

    loaded: ClassVar[list[str]] = []

    def __init__(self, *, model, **_):
        from transformers import AutoModelForCausalLM

        self.loaded.append(model)
        self._model, self._waiting = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), []

    def submit(self, prompts, settings):
        self._waiting += [(list(prompt), settings) for prompt in prompts]

    def step(self):
        prompt, settings = self._waiting.pop(0)
        draw = random.Random(prompt_seed(settings.seed, prompt))
        scores = log_probs(self._model, prompt) if settings.prompt_log_probs else None
        ids = [[draw.randrange(3, len(WORDS)) for _ in range(settings.max_tokens)] for _ in range(settings.n)]
        return [(prompt, [Completion(sample, "length", None, scores) for sample in ids])]


def log_probs(model, ids):
    with torch.no_grad():
        found = model(torch.tensor([ids])).logits.log_softmax(-1)[0, :-1]
    return found.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()


@pytest.fixture
def asked(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_worker, "Sampler", PlayedSampler)
    PlayedSampler.loaded.clear()
    write_model(tmp_path / "model", seed=1)
    write_problems(tmp_path / "train.parquet", 20)
    return {
        **{"model": str(tmp_path / "model"), "out": str(tmp_path / "out"), "device": "cpu", "template": "none"},
        **{"max_tokens": 6, "proposal_tokens": 6, "prompt_tokens": 8, "percentiles": [0, 50], "least": 8},
        **{"proposals": 60, "prompts": ["3 + 4 =", "5 ="], "hint_prompt": "{question} {hint}"},
        **{"pattern": r"^(?P<question>\S+ \S+ \S+) (?P<hint>\S+)", "known": [str(tmp_path / "train.parquet")]},
        **{"question_characters": [3, 80], "hint_characters": [1, 40]},
    }


def make(asked):
    propose.main(arguments.parse(arguments.plain_arguments(asked), propose.Options))


def test_prompts_are_those_of_moderate_hint_delta(tmp_path, asked):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    make(asked)
    out = tmp_path / "out"
    proposals, summary = (
        pq.read_table(out / "proposals.parquet").to_pylist(),
        json.loads((out / "g_zero.json").read_text()),
    )
    kept = [p for p in proposals if p["kept"]]
    assert (
        summary["proposals"]
        == 60
        == len(proposals) + sum(count for why, count in summary["dropped"].items() if why != "percentile")
    )
    assert 8 <= len(kept) == summary["prompts"] == len(proposals) - summary["dropped"]["percentile"]
    assert max(p["delta"] for p in kept) <= min(p["delta"] for p in proposals if not p["kept"])
    assert summary["sampled_tokens"] == 60 * 6 + len(proposals) * 5
    written = read_pool(out / "prompts.parquet")
    assert [p.text for p in written] == [p["question"] for p in kept] and {p.data_source for p in written} == {"g_zero"}

    model = AutoModelForCausalLM.from_pretrained(asked["model"], dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(asked["model"])
    for p in proposals:
        answer = p["answer_ids"]
        texts = (p["question"], f"{p['question']} {p['hint']}")
        scored = [log_probs(model, [*tokenizer(text)["input_ids"], *answer])[-len(answer) :] for text in texts]
        means = [sum(found) / len(answer) for found in scored]
        assert p["delta"] == pytest.approx(means[0] - means[1], abs=1e-5)


def test_the_same_command_resumes_from_the_samples(tmp_path, asked):
    with pytest.raises(UserError, match="dropped") as caught:
        make(asked | {"least": 60})
    assert caught.value.key == "stages.g_zero.proposals" and caught.value.value == 60
    loaded = len(PlayedSampler.loaded)
    make(asked)
    assert loaded == 3 and len(PlayedSampler.loaded) == loaded


def test_nothing_is_sampled_for_proposals_of_no_form(asked):
    with pytest.raises(UserError, match="60 malformed"):
        make(asked | {"pattern": "(?P<question>why)(?P<hint>because)"})
    assert len(PlayedSampler.loaded) == 1


def test_a_question_without_an_answer_is_dropped(tmp_path, asked, monkeypatch):
    class Silent(PlayedSampler):
        """Ends every second answer at once."""

        def step(self):
            [(prompt, completions)] = super().step()
            answers = len(completions[0].token_ids) == asked["max_tokens"] - 1
            silent = answers and prompt_seed(0, prompt) % 2
            return [(prompt, [Completion([], "stop", None, None)] if silent else completions)]

    monkeypatch.setattr(shard_worker, "Sampler", Silent)
    make(asked | {"least": 1})
    summary = json.loads((tmp_path / "out" / "g_zero.json").read_text())
    answers = pq.read_table(tmp_path / "out" / "proposals.parquet")["answer_ids"].to_pylist()
    assert summary["dropped"]["unanswered"] > 0 and answers and all(answers)
