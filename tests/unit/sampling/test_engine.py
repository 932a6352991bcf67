"""Sampling with a real engine: against plain transformers, reproducible, and never a padded id."""

from __future__ import annotations

import json
import os

import pyarrow.parquet as pq
import pytest
import torch

from tests.support import tiny
from tests.support.fake_engine import hold_until_ready
from verl_s2d.errors import UserError
from verl_s2d.sampling import complete, shard_worker, shards
from verl_s2d.sampling.engine import Sampler
from verl_s2d.sampling.prompts import load_tokenizer, prompt_seed, render_prompt
from verl_s2d.sampling.request import Settings
from verl_s2d.stages.evaluate import sample_and_score
from verl_s2d.stages.rollouts import rollout_cache
from verl_s2d.stages.warmup.stored_top_k import RolloutsWithLikelyTokens

MESSAGES = [{"role": "user", "content": "3 + 4 ="}]
SETTINGS = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "max_tokens": 6, "seed": 0}


def sample(sampler, prompts, n, **settings):
    """n completions of each prompt."""
    sampler.submit(prompts, Settings(n=n, **settings))
    found = {}
    while len(found) < len(prompts):
        found |= {tuple(prompt): completions for prompt, completions in sampler.step()}
    return [found[tuple(prompt)] for prompt in prompts]


@pytest.fixture(scope="module", autouse=True)
def nothing_left_behind():
    """On a CPU the engine lives in this process: undo what it does to the environment and to torch.distributed."""
    environment = dict(os.environ)
    yield
    from vllm.distributed import cleanup_dist_env_and_memory

    cleanup_dist_env_and_memory()
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """More embeddings than tokens, as published models have."""
    directory = tmp_path_factory.mktemp("model")
    tiny.write_model(directory, words=[*tiny.WORDS, *(f"<padding {i}>" for i in range(40))])
    tiny.write_tokenizer(directory)
    return str(directory)


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    return str(tiny.write_problems(tmp_path_factory.mktemp("data") / "problems.parquet", 12))


def test_prompts_are_rendered_as_in_verls_rollout(model):
    from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

    tokenizer = load_tokenizer(model)
    builder = create_continuous_token_builder(tokenizer, hf_model_type="qwen3", chat_template_kwargs={})
    assert render_prompt(tokenizer, MESSAGES) == builder.build_initial_tokens(MESSAGES)
    assert tokenizer.decode(render_prompt(tokenizer, MESSAGES)) == "3 + 4 ="


def test_against_transformers(model):
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(model)
    prompts = [tokenizer.encode(text) for text in ("3 + 4 =", "9 + 9 =", "1 =")]
    sampler = Sampler(model, context=10)

    greedy = sample(sampler, prompts, n=2, **{**SETTINGS, "temperature": 0.0})
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    for prompt, (completion, again) in zip(prompts, greedy, strict=True):
        ids = list(prompt)
        while len(ids) - len(prompt) < SETTINGS["max_tokens"]:
            ids.append(int(reference(torch.tensor([ids])).logits[0, -1, : len(tokenizer)].argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                break
        assert completion.token_ids == again.token_ids == ids[len(prompt) :]

    samples = sample(sampler, prompts, n=600, **SETTINGS)
    for prompt, completions in zip(prompts, samples, strict=True):
        for completion in completions:
            assert max(completion.token_ids) < len(tokenizer)
            stopped = completion.token_ids[-1] == tokenizer.eos_token_id
            assert completion.finish_reason == ("stop" if stopped else "length")
            assert stopped or len(completion.token_ids) == SETTINGS["max_tokens"]
        first = torch.bincount(torch.tensor([c.token_ids[0] for c in completions]), minlength=len(tokenizer)) / 600
        expected = reference(torch.tensor([prompt])).logits[0, -1, : len(tokenizer)].softmax(-1)
        # Total variation of 600 draws over 25 tokens is about 0.08.
        assert (first - expected).abs().sum() / 2 < 0.14

    alone = sample(sampler, prompts[1:2], n=600, **SETTINGS)
    assert alone[0] == samples[1]
    other = sample(sampler, prompts[1:2], n=600, **{**SETTINGS, "seed": 1})
    assert other[0] != samples[1]


def test_seeds_of_prompts():
    assert prompt_seed(0, [1, 2]) == prompt_seed(0, [1, 2])
    assert len({prompt_seed(s, p) for s in (0, 1) for p in ([1, 2], [12], [1, 2, 3])}) == 6
    assert 0 <= prompt_seed(0, [1]) < 2**31


def test_rollout_cache(model, problems, tmp_path, monkeypatch):
    monkeypatch.setattr(rollout_cache, "_PROBLEMS_AT_ONCE", 5)
    monkeypatch.setattr(shards, "PROMPTS_A_PART", 5)
    options = rollout_cache.Options(model=model, data=problems, out=str(tmp_path), n=3, max_tokens=6)
    rollout_cache.main(options)
    table = pq.read_table(tmp_path / "rollouts.parquet")
    assert table.schema.equals(rollout_cache.SCHEMA)
    rows, summary = table.to_pylist(), json.loads((tmp_path / "rollouts.json").read_text())
    assert summary["counts"] == {
        "prompts": 12,
        "sequences": 36,
        "sampled_tokens": sum(len(r["response_ids"]) for r in rows),
        "truncated": sum(r["finish_reason"] == "length" for r in rows),
    }
    assert summary["model"] == model and summary["settings"] == {"n": 3, "top_k": -1, **SETTINGS}
    assert [r["sample"] for r in rows] == [0, 1, 2] * 12
    assert len({(r["problem_id"], tuple(r["prompt_ids"])) for r in rows}) == 12


def test_rollouts_that_were_killed_end_as_the_same_file(model, problems, tmp_path, monkeypatch):
    """Whatever the engine works on at the same time."""
    monkeypatch.setattr(shards, "PROMPTS_A_PART", 2)
    options = {"model": model, "data": problems, "n": 3, "max_tokens": 6}
    rollout_cache.main(rollout_cache.Options(out=str(tmp_path / "undisturbed"), **options))
    left = 3

    def killed(part, samples):
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        shards.write_part(part, samples)

    monkeypatch.setattr(shard_worker, "SEQUENCES_AHEAD", 7)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(complete, "write_part", killed)
        rollout_cache.main(rollout_cache.Options(out=str(tmp_path / "killed"), **options))
    assert not (tmp_path / "killed" / "rollouts.parquet").exists()
    rollout_cache.main(rollout_cache.Options(out=str(tmp_path / "killed"), **options))
    for name in ("rollouts.parquet", "rollouts.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()


def test_two_engines_make_the_same_file_as_one(model, problems, tmp_path, monkeypatch):
    """Real ones, in Ray actors; none gets a shard before both can work."""
    monkeypatch.setattr(shards, "PROMPTS_A_PART", 2)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    worked = hold_until_ready(monkeypatch, 2)
    options = {"model": model, "data": problems, "n": 3, "max_tokens": 6}
    rollout_cache.main(rollout_cache.Options(out=str(tmp_path / "2"), replicas=2, **options))
    assert worked == {0, 1}
    rollout_cache.main(rollout_cache.Options(out=str(tmp_path / "1"), replicas=1, **options))
    for name in ("rollouts.parquet", "rollouts.json"):
        assert (tmp_path / "2" / name).read_bytes() == (tmp_path / "1" / name).read_bytes()


def test_evaluation(model, problems, tmp_path):
    verifier = f"{tiny.__file__}:score_sum"
    options = sample_and_score.Options(
        model=model, verifier=verifier, out=str(tmp_path), max_tokens=6, set={"sums": problems}, samples=4
    )
    sample_and_score.main(options)
    result = json.loads((tmp_path / "result.json").read_text())
    rows = pq.read_table(tmp_path / "generations.parquet").to_pylist()
    assert len(rows) == 48 and result["sets"]["sums"]["n_problems"] == 12
    assert result["sets"]["sums"]["avg"] == pytest.approx(sum(r["correct"] for r in rows) / 48)
    assert result["sampling"] == {"samples": 4, **SETTINGS}
    assert all("<|im_end|>" not in r["response"] for r in rows)


def test_bad_input_is_found_before_the_engine_starts(model, problems, tmp_path):
    options = {"verifier": f"{tiny.__file__}:score_sum", "out": str(tmp_path), "max_tokens": 6, "set": {"s": problems}}
    with pytest.raises(UserError, match="nothing to evaluate"):
        sample_and_score.main(sample_and_score.Options(model=model, **{**options, "set": {}}))
    with pytest.raises(UserError, match="cannot be read"):
        sample_and_score.main(sample_and_score.Options(model=str(tmp_path / "absent"), **options))
    with pytest.raises(UserError, match="out of range") as caught:
        sample_and_score.main(sample_and_score.Options(model=model, **options, top_p=0.0))
    assert caught.value.key == "top_p"
    with pytest.raises(UserError, match="context is 128 tokens"):
        sample_and_score.main(sample_and_score.Options(model=model, **{**options, "max_tokens": 126}))
    assert not list(tmp_path.iterdir())


def test_likely_tokens_are_the_models_own_at_temperature_1_and_never_padding(model):
    """Sampled at another temperature, from fewer tokens, and greedily: what is stored follows from the ids alone."""
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(model)
    prompts = [tokenizer.encode(text) for text in ("3 + 4 =", "1 =")]
    k, size = 5, len(tiny.WORDS)
    sampler = Sampler(model, context=10, log_probs=k)
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    for settings in ({"temperature": 0.5, "top_k": 3}, {"temperature": 0.0}):
        found = sample(sampler, prompts, n=2, **{**SETTINGS, **settings, "log_probs": k})
        for prompt, completions in zip(prompts, found, strict=True):
            for completion in completions:
                ids = torch.tensor([prompt + completion.token_ids])
                with torch.no_grad():
                    logits = reference(ids).logits[0, len(prompt) - 1 : -1, :size]
                expected = logits.log_softmax(-1)
                assert completion.likely.ids.shape == (len(completion.token_ids), k)
                likely, log_probs = map(torch.from_numpy, (completion.likely.ids, completion.likely.log_probs))
                torch.testing.assert_close(log_probs, expected.topk(k).values, atol=1e-4, rtol=0)
                torch.testing.assert_close(expected.gather(1, likely.long()), log_probs, atol=1e-4, rtol=0)
    with pytest.raises(UserError) as caught:
        Sampler(model, context=10, log_probs=1000)
    assert caught.value.key == "log_probs"


def test_a_cache_with_likely_tokens_has_them_beside_its_responses(model, problems, tmp_path):
    options = {"model": model, "data": problems, "max_tokens": 4, "rows": 6, "device": "cpu", "log_probs": 3}
    rollout_cache.main(rollout_cache.Options(**options, out=str(tmp_path)))
    rollouts = RolloutsWithLikelyTokens(str(tmp_path / "rollouts.parquet"), 2)
    assert len(rollouts) == 6
    for row in (rollouts[i] for i in range(6)):
        predicts = torch.roll(row["loss_mask"], -1).bool()
        assert (row["teacher_logprobs"][predicts] < 0).all() and not row["teacher_logprobs"][~predicts].any()
        assert (row["teacher_logprobs"].diff(dim=1) <= 0).all()
    assert json.loads((tmp_path / "rollouts.json").read_text())["settings"]["log_probs"] == 3
