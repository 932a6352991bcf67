"""Sampling that is killed, at any moment and as often as one likes: the same file, and nothing done twice."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import tiny
from tests.support.fake_engine import FakeSampler, Machine, completions
from tests.support.sampling_jobs import FILES, job, result
from verl_s2d.data.problems import read_problems
from verl_s2d.errors import UserError
from verl_s2d.sampling import PARTS, shard_worker, shards
from verl_s2d.sampling.prompts import load_tokenizer, render_prompt
from verl_s2d.sampling.request import Settings
from verl_s2d.stages.evaluate import sample_and_score
from verl_s2d.stages.rollouts import rollout_cache
from verl_s2d.stages.warmup.rollout_dataset import ShuffledPasses

SAMPLING = Settings(n=3, temperature=1.0, top_p=1.0, top_k=-1, max_tokens=6, seed=0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    tiny.write_tokenizer(directory)
    return directory


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.write_problems(tmp_path_factory.mktemp("data") / "problems.parquet", 11)


@pytest.fixture(autouse=True)
def small(model, monkeypatch):
    """Parts of 2 prompts, of which two are open at a time; a tokenizer that is loaded once."""
    monkeypatch.setattr(shards, "PROMPTS_A_PART", 2)
    monkeypatch.setattr(shard_worker, "SEQUENCES_AHEAD", 9)
    for module in (rollout_cache, sample_and_score):
        loaded = functools.cache(lambda name, trust_remote_code: load_tokenizer(name))
        monkeypatch.setattr(module, "load_tokenizer", loaded)


@pytest.fixture
def machine(monkeypatch):
    return Machine(monkeypatch)


def finished(what, out):
    """As the workflow sees it."""
    return all((out / name).exists() for name in FILES[what])


def test_the_rollouts_are_one_file_as_it_ever_was(model, data, machine, tmp_path, monkeypatch):
    monkeypatch.setattr(rollout_cache, "_PROBLEMS_AT_ONCE", 4)
    main, options = job("rollouts", model, data, tmp_path / "out")
    assert machine.run(main, options)
    tokenizer = load_tokenizer(str(model))
    with pq.ParquetWriter(tmp_path / "expected", rollout_cache.SCHEMA) as writer:
        problems = read_problems(data)
        for first in range(0, len(problems), 4):
            rows = []
            for problem in problems[first : first + 4]:
                prompt = render_prompt(tokenizer, problem.messages)
                for number, sample in enumerate(completions(prompt, SAMPLING)):
                    rows.append(
                        {
                            "prompt_ids": prompt,
                            "response_ids": sample.token_ids,
                            "finish_reason": sample.finish_reason,
                            "problem_id": problem.id,
                            "sample": number,
                            "data_source": problem.data_source,
                        }
                    )
            writer.write_table(pa.Table.from_pylist(rows, rollout_cache.SCHEMA))
    assert (tmp_path / "out" / "rollouts.parquet").read_bytes() == (tmp_path / "expected").read_bytes()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["rollouts.json", "rollouts.parquet"]


@pytest.mark.parametrize("what", FILES)
def test_a_kill_at_every_point_changes_nothing(what, model, data, machine, tmp_path):
    main, options = job(what, model, data, tmp_path / "undisturbed")
    assert machine.run(main, options)
    expected, events = result(what, tmp_path / "undisturbed"), machine.events
    assert len(machine.sampled) == 11 and events > 40
    for point in range(events):
        out = tmp_path / f"killed-{point}"
        machine.whole.clear()
        main, options = job(what, model, data, out)
        assert not machine.run(main, options, dies_at=point)
        if not finished(what, out):
            assert machine.run(main, options)
            assert not [p for p in out.iterdir() if p.name not in FILES[what]], "nothing is left behind"
        assert result(what, out) == expected
        shutil.rmtree(out)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(what=st.sampled_from(sorted(FILES)), points=st.lists(st.integers(0, 60), max_size=8))
def test_any_number_of_kills_changes_nothing(what, points, model, data, machine, tmp_path):
    out = tmp_path / "out"
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    main, options = job(what, model, data, tmp_path / "undisturbed")
    machine.whole.clear()
    assert machine.run(main, options)
    machine.whole.clear()
    main, options = job(what, model, data, out)
    for point in points:
        if not finished(what, out):
            machine.run(main, options, dies_at=point)
    assert finished(what, out) or machine.run(main, options)
    assert result(what, out) == result(what, tmp_path / "undisturbed")


def half_done(machine, model, data, out):
    """Rollouts killed when some parts are whole; their files."""
    main, options = job("rollouts", model, data, out)
    assert not machine.run(main, options, dies_at=20)
    whole = sorted((out / PARTS).glob("part-*"))
    assert 1 < len(whole) < 6
    return whole


def test_what_was_not_lost_is_said(model, data, machine, tmp_path, capsys):
    whole = half_done(machine, model, data, tmp_path)
    main, options = job("rollouts", model, data, tmp_path)
    assert machine.run(main, options)
    said = capsys.readouterr().out
    assert f"rollouts: {len(whole)} of 6 parts are there from an earlier attempt" in said
    tokens = json.loads((tmp_path / "rollouts.json").read_text())["counts"]["sampled_tokens"]
    assert f"rollouts: 11/11 prompts, {tokens} tokens" in said


@pytest.mark.parametrize("where", [0, 0.2, 0.4, 0.6, 0.8, 0.99, "cut", "empty", "other"])
def test_a_damaged_part_is_sampled_again(where, model, data, machine, tmp_path, capsys):
    main, options = job("rollouts", model, data, tmp_path / "undisturbed")
    assert machine.run(main, options)
    machine.whole.clear()
    out = tmp_path / "out"
    damaged = half_done(machine, model, data, out)[0]
    content = bytearray(damaged.read_bytes())
    if where == "other":
        content = b"not parquet at all, but long enough to be looked into"
    elif isinstance(where, str):
        content = content[: len(content) // 2 if where == "cut" else 0]
    else:
        content[int(where * len(content))] ^= 0x10
    damaged.write_bytes(content)
    machine.whole.clear()
    main, options = job("rollouts", model, data, out)
    assert machine.run(main, options)
    assert result("rollouts", out) == result("rollouts", tmp_path / "undisturbed")
    assert capsys.readouterr().out.count(f"{damaged.name} ") == 1


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, "settings"),
        ({"n": 2}, "settings"),
        ({"max_tokens": 5}, "settings"),
        ({"temperature": 0.5}, "settings"),
        ({"chat_template": {"suffix": "+"}}, "prompts"),
        ({"model": "moved"}, "model"),
        ({"model": "trained"}, "weights"),
        ({"data": "others"}, "files, prompts"),
        ({"data": "labels"}, "files"),
    ],
)
def test_parts_of_another_request_are_not_taken(changes, named, data, machine, tmp_path, capsys):
    model = tmp_path / "model"
    tiny.write_tokenizer(model)
    (model / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %} {{ suffix }}")
    whole = half_done(machine, model, data, tmp_path / "out")
    machine.whole.clear()
    changes = dict(changes)
    what = changes.pop("model", changes.pop("data", None))
    if what == "moved":
        model = model.rename(tmp_path / "moved")
    elif what == "trained":
        (model / "model.safetensors").touch()
    elif what == "others":
        data = tiny.write_problems(tmp_path / "others.parquet", 11, seed=1)
    elif what == "labels":
        table = pq.read_table(data)
        data = tmp_path / "labels.parquet"
        pq.write_table(table.set_column(1, table.column_names[1], pa.array(["other"] * len(table))), data)
    assert machine.run(*job("rollouts", model, data, tmp_path / "expected", **changes))
    machine.whole.clear()
    capsys.readouterr()
    assert machine.run(*job("rollouts", model, data, tmp_path / "out", **changes))
    assert result("rollouts", tmp_path / "out") == result("rollouts", tmp_path / "expected")
    said = capsys.readouterr().out
    assert said.count(f"was made from something else ({named}) and is made again") == len(whole)


def test_scores_of_another_verifier_are_not_taken(model, data, machine, tmp_path):
    """But the samples are: the verifier has no say in them."""
    main, options = job("evaluation", model, data, tmp_path / "out")
    undisturbed = job("evaluation", model, data, tmp_path / "undisturbed")
    assert machine.run(*undisturbed)
    machine.whole.clear()
    assert not machine.run(main, options, dies_at=3 * machine.events // 4)
    assert list((tmp_path / "out" / PARTS).glob("scored-*"))
    verifier = tmp_path / "all_right.py"
    verifier.write_text("def score(*args, **kwargs):\n    return 1.0\n")
    other = sample_and_score.Options(**{**vars(options), "verifier": f"{verifier}:score"})
    before = len(machine.sampled)
    assert machine.run(main, other)
    assert len(machine.sampled) < before + 11
    scored = json.loads((tmp_path / "out" / "result.json").read_text())
    assert scored["sets"]["sums"]["avg"] == 1.0
    right = pq.read_table(tmp_path / "undisturbed" / "generations.parquet", columns=["correct"])["correct"]
    assert not all(right.to_pylist())


def test_sets_may_share_a_problem(model, machine, tmp_path):
    sets = {name: str(tiny.write_problems(tmp_path / f"{name}.parquet", 5)) for name in ("a", "b")}
    main, options = job("evaluation", model, None, tmp_path / "out", set=sets)
    machine.forgets = True
    assert machine.run(main, options)
    rows = pq.read_table(tmp_path / "out" / "generations.parquet").to_pylist()
    of = {name: [row["response_ids"] for row in rows if row["set"] == name] for name in sets}
    assert of["a"] == of["b"] and len(of["a"]) == 15


@pytest.mark.parametrize("what", ["rollouts", "evaluation"])
def test_an_argument_that_is_computed_is_refused(what, model, data, machine, tmp_path):
    main, options = job(what, model, data, tmp_path / "out", engine={"max_model_len": 9})
    with pytest.raises(UserError, match="computed") as refused:
        main(options)
    assert refused.value.key == "engine.max_model_len" and machine.sampled == []


def cache_of_rows(model, data, out, machine, rows, **changes):
    machine.whole.clear()
    main, options = job("rollouts", model, data, out, n=None, rows=rows, **changes)
    assert machine.run(main, options)
    return pq.read_table(out / "rollouts.parquet").to_pylist()


@pytest.mark.parametrize("rows", [1, 5, 11, 12, 25, 33])
def test_a_cache_of_so_many_rows_has_each_problem_as_often_as_any_other_or_once_more(
    rows, model, data, machine, tmp_path
):
    found = cache_of_rows(model, data, tmp_path / "out", machine, rows)
    assert len(found) == rows
    ids = list(dict.fromkeys(row["problem_id"] for row in found))
    order = list(ShuffledPasses(11, min(rows, 11), 0))
    assert ids == [read_problems(data)[place].id for place in order], "drawn as the warmup draws"
    counts = [sum(row["problem_id"] == i for row in found) for i in ids]
    each, extra = divmod(rows, len(ids))
    assert counts == [each + 1] * extra + [each] * (len(ids) - extra)
    for i, count in zip(ids, counts, strict=True):
        of_problem = [row for row in found if row["problem_id"] == i]
        expected = completions(of_problem[0]["prompt_ids"], dataclasses.replace(SAMPLING, n=count))
        assert [row["response_ids"] for row in of_problem] == [c.token_ids for c in expected]
        assert [row["sample"] for row in of_problem] == list(range(count))
    assert json.loads((tmp_path / "out" / "rollouts.json").read_text())["counts"]["prompts"] == len(ids)


def test_another_seed_draws_other_problems(model, data, machine, tmp_path):
    first, second = (
        {row["problem_id"] for row in cache_of_rows(model, data, tmp_path / str(seed), machine, 5, seed=seed)}
        for seed in (0, 1)
    )
    assert first != second


def test_a_greedy_cache_repeats_nothing(model, data, machine, tmp_path):
    found = cache_of_rows(model, data, tmp_path / "out", machine, 25, temperature=0.0)
    assert len(found) == len({row["problem_id"] for row in found}) == 11


@pytest.mark.parametrize("point", [9, 20, 35])
def test_a_cache_of_rows_survives_a_kill(point, model, data, machine, tmp_path):
    cache_of_rows(model, data, tmp_path / "undisturbed", machine, 25)
    machine.whole.clear()
    main, options = job("rollouts", model, data, tmp_path / "out", n=None, rows=25)
    assert not machine.run(main, options, dies_at=point) and machine.run(main, options)
    assert result("rollouts", tmp_path / "out") == result("rollouts", tmp_path / "undisturbed")


@pytest.mark.parametrize("how", [{"n": None}, {"rows": 4}])
def test_how_much_is_sampled_is_said_in_one_way(how, model, data, tmp_path):
    main, options = job("rollouts", model, data, tmp_path / "out", **how)
    with pytest.raises(UserError, match="in one way"):
        main(options)


def test_equal_prompts_with_other_numbers_of_samples_are_told_apart(tmp_path, monkeypatch):
    """The longer one ends first."""
    monkeypatch.setattr(shard_worker, "Sampler", FakeSampler)
    given = [shards.Part(i, [[7, 7]], n, str(tmp_path / f"part-{i}"), {}) for i, n in enumerate((1, 3))]
    worker = shard_worker.ShardWorker({}, SAMPLING)
    tables = dict(worker.work(given).finished + worker.work([]).finished)
    for part in given:
        expected = completions([7, 7], dataclasses.replace(SAMPLING, n=part.samples))
        assert tables[part.number]["response_ids"].to_pylist() == [c.token_ids for c in expected]
