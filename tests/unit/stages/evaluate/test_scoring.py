"""Scores are made while other parts are sampled, small sets are begun first, and a model is read once."""

from __future__ import annotations

import json
import threading

import pyarrow.parquet as pq
import pytest

from tests.support import tiny
from tests.support.fake_engine import FakeSampler
from tests.support.sampling_jobs import job
from verl_s2d.data.problems import read_problems
from verl_s2d.errors import UserError
from verl_s2d.sampling import PARTS, request, shard_worker, shards
from verl_s2d.stages.evaluate import sample_and_score
from verl_s2d.verifiers import score as retries


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    tiny.write_tokenizer(directory)
    return directory


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """One part of two prompts is open at a time."""
    monkeypatch.setattr(shards, "PROMPTS_A_PART", 2)
    monkeypatch.setattr(shard_worker, "SEQUENCES_AHEAD", 1)


def verifier(directory, body):
    file = directory / "verifier.py"
    file.write_text(f"calls = []\ndef score(solution_str='', ground_truth='', **_):\n    {body}\n")
    return f"{file}:score"


def test_a_part_is_scored_while_the_next_is_sampled(model, tmp_path, monkeypatch):
    """The engine does not begin its last part before a score of the first is there."""
    seen = []

    class Sampler(FakeSampler):
        def submit(self, prompts, settings):
            if len(seen) == 4:
                scored.wait(30)
            seen.append([path.name for path in (tmp_path / "out" / PARTS).glob("scored-*")])
            super().submit(prompts, settings)

    scored = threading.Event()
    original = sample_and_score.Scorer._score

    def score(self, *arguments):
        rows = original(self, *arguments)
        scored.set()
        return rows

    monkeypatch.setattr(shard_worker, "Sampler", Sampler)
    monkeypatch.setattr(sample_and_score.Scorer, "_score", score)
    data = tiny.write_problems(tmp_path / "problems.parquet", 10)
    main, options = job("evaluation", model, data, tmp_path / "out")
    main(options)
    assert len(seen) == 5 and "scored-00000" in seen[-1]


def test_a_verifier_that_fails_ends_the_sampling(model, tmp_path, monkeypatch):
    sampled = []

    class Sampler(FakeSampler):
        def submit(self, prompts, settings):
            sampled.append(prompts)
            for thread in threading.enumerate():
                # Until the scorer has seen what there is: this test is not about who is faster.
                if thread.name.startswith("scoring") and len(sampled) > 1:
                    failed.wait(30)
            super().submit(prompts, settings)

    failed = threading.Event()
    original = sample_and_score.Scorer._score

    def score(self, *arguments):
        try:
            return original(self, *arguments)
        finally:
            failed.set()

    monkeypatch.setattr(shard_worker, "Sampler", Sampler)
    monkeypatch.setattr(sample_and_score.Scorer, "_score", score)
    data = tiny.write_problems(tmp_path / "problems.parquet", 20)
    chosen = verifier(tmp_path, "if solution_str: raise RuntimeError('no such answer')\n    return 0.0")
    main, options = job("evaluation", model, data, tmp_path / "out")
    with pytest.raises(RuntimeError, match="no such answer"):
        main(sample_and_score.Options(**{**vars(options), "verifier": chosen}))
    assert len(sampled) < 10, "of ten parts"


def test_small_sets_are_begun_first_and_the_file_is_in_the_order_of_the_sets(model, tmp_path, monkeypatch):
    monkeypatch.setattr(shard_worker, "Sampler", FakeSampler)
    sets = {
        name: str(tiny.write_problems(tmp_path / f"{name}.parquet", n, seed=n))
        for name, n in {"a": 8, "b": 2, "c": 1}.items()
    }
    main, options = job("evaluation", model, None, tmp_path / "out", set=sets)
    order = []
    original = sample_and_score.Scorer.score
    monkeypatch.setattr(
        sample_and_score.Scorer, "score", lambda self, p, number: (order.append(number), original(self, p, number))
    )
    main(options)
    assert order == [5, 4, 0, 1, 2, 3], "the parts of c, of b, and of a"
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert list(result["sets"]) == ["a", "b", "c"]
    rows = pq.read_table(tmp_path / "out" / "generations.parquet").to_pylist()
    problem = read_problems(sets["c"])[0]
    assert (rows[-1]["prompt"], rows[-1]["ground_truth"]) == (problem.messages[0]["content"], problem.ground_truth)


def test_a_digest_that_is_known_is_taken_and_the_model_is_not_read(model, tmp_path, monkeypatch):
    monkeypatch.setattr(shard_worker, "Sampler", FakeSampler)
    monkeypatch.setattr(request, "directory_digest", lambda _: pytest.fail("read again"))
    data = tiny.write_problems(tmp_path / "problems.parquet", 2)
    main, options = job("rollouts", model, data, tmp_path / "out", weights="model:abc")
    main(options)


UNJUDGED = """calls.append(1)
    # The first call is the check.
    if len(calls) > 1 and ground_truth in {truths}:
        raise Unscored('no verdict', lasting={lasting})
    return 1.0"""


def judging(model, tmp_path, monkeypatch, truths, *, lasting=True, samples=3):
    """A job on ten problems whose verifier, right of all else, cannot judge those with some ground truths."""
    monkeypatch.setattr(shard_worker, "Sampler", FakeSampler)
    monkeypatch.setattr(retries, "PAUSES", (0.0,))
    data = tiny.write_problems(tmp_path / "problems.parquet", 10)
    chosen = verifier(tmp_path, UNJUDGED.format(truths=set(truths), lasting=lasting))
    file = tmp_path / "verifier.py"
    file.write_text(f"from verl_s2d.errors import Unscored\n{file.read_text()}")
    main, options = job("evaluation", model, data, tmp_path / "out", samples=samples)
    return main, sample_and_score.Options(**{**vars(options), "verifier": chosen}), data


def test_samples_that_a_judge_cannot_judge_do_not_count_and_their_problem_is_left_out(model, tmp_path, monkeypatch):
    monkeypatch.setattr(sample_and_score, "MOST_UNSCORED", 0.99)
    truth = read_problems(tiny.write_problems(tmp_path / "problems.parquet", 10))[0].ground_truth
    main, options, data = judging(model, tmp_path, monkeypatch, [truth])
    main(options)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    told, problems = result["sets"]["sums"], result["per_problem"]["sums"]
    left_out = [problem.id for problem in read_problems(data) if problem.ground_truth == truth]
    assert left_out and told["left_out"] == left_out and told["unscored"] == 3 * len(left_out)
    assert told["avg"] == 1.0 and told["n_problems"] == len(problems) == 10 - len(left_out)
    assert set(told["pass_at"].values()) == {1.0} and not {p["id"] for p in problems} & set(left_out)
    rows = pq.read_table(tmp_path / "out" / "generations.parquet").to_pylist()
    assert {row["id"] for row in rows if row["unscored"]} == set(left_out)


def test_part_of_a_problems_samples_may_be_unscored():
    made = {"set": "s", "response_ids": [1], "finish_reason": "stop"}
    kinds = [(True, False), (False, False), (False, True), (True, False), (True, False), (False, False)]
    rows = [
        {**made, "id": f"p{number // 3}", "correct": right, "unscored": unscored}
        for number, (right, unscored) in enumerate(kinds)
    ]
    result = sample_and_score.summarise(rows, 3)
    assert [(p["correct"], p["samples"]) for p in result["per_problem"]["s"]] == [(1, 2), (2, 3)]
    told = result["sets"]["s"]
    assert told["avg"] == pytest.approx((1 / 2 + 2 / 3) / 2) and told["pass_at"]["1"] == pytest.approx(2 / 3)
    assert told["unscored"] == 1 and told["left_out"] == []


def test_too_many_unscored_samples_end_the_evaluation_and_are_asked_about_again(model, tmp_path, monkeypatch):
    truths = {problem.ground_truth for problem in read_problems(tiny.write_problems(tmp_path / "p.parquet", 10))}
    main, options, _ = judging(model, tmp_path, monkeypatch, truths)
    with pytest.raises(UserError, match="could not judge 30 of 30"):
        main(options)
    assert not (tmp_path / "out" / "result.json").exists()
    assert not list((tmp_path / "out" / PARTS).glob("scored-*"))


def test_a_service_that_is_down_ends_the_evaluation_at_once(model, tmp_path, monkeypatch):
    truths = {problem.ground_truth for problem in read_problems(tiny.write_problems(tmp_path / "p.parquet", 10))}
    main, options, _ = judging(model, tmp_path, monkeypatch, truths, lasting=False)
    with pytest.raises(UserError, match="samples and scores are kept"):
        main(options)
