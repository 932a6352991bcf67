"""`verl-s2d prepare` on parts of the published sets: digests, counts, contamination, and verl's own dataset class."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support import published
from tests.support.published import EVALUATION, SETS
from tests.support.tiny import write_tokenizer
from verl_s2d.data import slices, templates
from verl_s2d.data.prepare import Options, prepare
from verl_s2d.data.problems import check_disjoint, read_problems

DIGESTS = {
    "dapo-math-17k": "27e22d6b07608834",
    "aime24": "f389289204edcfa0",
    "aime25": "7122a19b27fe1ca2",
    "math500": "680cd014ad328716",
}
HALVES = {
    "seed": 0,
    "1h": 19,
    "2h": 19,
    "digest": "b389aa71efcd44943ab71bdc5ab2eb1860bc993668cfa0f5a5755b6f0d0688c7",
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, str]:
    return published.write_sets(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def prepared(sources, tmp_path_factory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("prepared")
    return out, prepare(Options(out=str(out), sources=sources))


def test_digests_are_the_same_for_ever(prepared):
    _, manifest = prepared
    assert {name: one["digest"][:16] for name, one in manifest["sets"].items()} == DIGESTS
    assert manifest["halves"] == HALVES


def test_counts(prepared):
    _, manifest = prepared
    train = manifest["sets"]["dapo-math-17k"]
    counted = train["duplicates"]
    assert (train["rows"], train["problems"], train["templates"]) == (49, 38, {"dapo": 49})
    assert (counted["identical"], counted["same_text"], counted["unresolved"]) == (0, 7, 4)
    assert train["rows"] == train["problems"] + sum(counted[k] for k in ("identical", "same_text", "unresolved"))
    assert [c["answers"] for c in counted["contradictions"]] == [["6", "64"], ["12", "6"], ["108", "180"]]
    assert [c["kept"] is None for c in counted["contradictions"]] == [True, True, False], "three of four copies say 108"
    for name, count in (("math500", 25), ("aime24", 30), ("aime25", 30)):
        one = manifest["sets"][name]
        assert (one["rows"], one["problems"], one["templates"]) == (count, count, {"boxed": count})


def test_contamination_of_the_published_sets(prepared):
    _, manifest = prepared
    overlaps = manifest["overlaps"]
    assert {o["eval_set"] for o in overlaps} == {"math500"}
    assert [o["how"] for o in overlaps].count("exact") == 2 and len(overlaps) == 6
    assert manifest["sets"]["math500"]["overlapping"] == 4
    assert manifest["sets"]["dapo-math-17k"]["overlapping"] == len({o["train_id"] for o in overlaps}) == 6


def test_preparing_again_gives_the_same_bytes(prepared, sources, tmp_path):
    out, manifest = prepared
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    assert set(before) == {"train.parquet", "prepared.json", "slices.json", *(f"{n}.parquet" for n in EVALUATION)}
    assert prepare(Options(out=str(tmp_path), eval="math500, aime25,aime24", sources=sources)) == manifest
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_halves_are_those_of_the_workflow(prepared, tmp_path):
    out, manifest = prepared
    slices.write_slices(slices.Options(train=str(out / "train.parquet"), out=str(tmp_path), seed=0))
    assert (tmp_path / "slices.json").read_bytes() == (out / "slices.json").read_bytes()
    summary = json.loads((out / "slices.json").read_text())
    assert summary["digest"] == manifest["halves"]["digest"] == slices.slices_digest(summary["slices"])
    first, second = (set(summary["slices"][half]) for half in ("1h", "2h"))
    assert not first & second and len(first) + len(second) == manifest["sets"]["dapo-math-17k"]["problems"]


def test_a_recipe_accepts_what_remove_leaves(prepared):
    out, manifest = prepared
    overlapping = {o["train_id"] for o in manifest["overlaps"]}
    left = [p for p in read_problems(out / "train.parquet") if p.id not in overlapping]
    assert len(left) == 38 - 6
    check_disjoint(left, {n: read_problems(out / f"{n}.parquet") for n in EVALUATION})


def test_the_other_template_and_thinking_change_prompts_and_nothing_else(prepared, tmp_path):
    boxed, manifest = prepared
    # Prepared files are sources, too.
    sources = {n: str(boxed / f"{'train' if n == SETS[0] else n}.parquet") for n in SETS}
    again = prepare(Options(out=str(tmp_path), template="dapo", thinking=True, sources=sources))
    assert again["halves"] == manifest["halves"] and again["chat_template"] == {"enable_thinking": True}
    for name in ("train", *EVALUATION):
        rows = [pq.read_table(d / f"{name}.parquet").to_pylist() for d in (boxed, tmp_path)]
        for before, after in zip(*rows, strict=True):
            problem, template = templates.strip(before["prompt"][0]["content"])
            assert template == "boxed" and problem == problem.strip()
            assert after["prompt"] == [{"role": "user", "content": templates.TEMPLATES["dapo"].apply(problem)}]
            assert (before["extra_info"]["thinking"], after["extra_info"]["thinking"]) == (False, True)
            before["prompt"], before["extra_info"]["thinking"] = after["prompt"], True
            assert before == after


def test_rows(prepared):
    out, _ = prepared
    math = pq.read_table(out / "math500.parquet").to_pylist()
    assert math[0]["extra_info"] == {
        "index": "test/precalculus/807.json",
        "split": "test",
        "level": None,
        "subject": "Precalculus",
        "thinking": False,
    }
    assert math[0]["prompt"][0]["content"].endswith(
        r" Please reason step by step, and put your final answer within \boxed{}."
    )
    assert {row["extra_info"]["subject"] for row in math} == {
        "Algebra",
        "Counting & Probability",
        "Geometry",
        "Intermediate Algebra",
        "Number Theory",
        "Prealgebra",
        "Precalculus",
    }
    answers = [row["reward_model"]["ground_truth"] for n in ("aime24", "aime25") for row in _rows(out, n)]
    assert all(a == str(int(a)) for a in answers) and {"25", "336"} <= set(answers)
    assert len({_rows(out, n)[0]["data_source"] for n in ("train", *EVALUATION)}) == 4


def _rows(out: Path, name: str) -> list[dict]:
    return pq.read_table(out / f"{name}.parquet").to_pylist()


def test_round_trip_through_verls_dataset(prepared, tmp_path, monkeypatch):
    import datasets
    from omegaconf import OmegaConf
    from transformers import AutoTokenizer
    from verl.utils.dataset.rl_dataset import RLHFDataset, collate_fn

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    out, manifest = prepared
    write_tokenizer(tmp_path / "tokenizer")
    config = OmegaConf.create(
        {
            "cache_dir": str(tmp_path / "verl"),
            "max_prompt_length": 1024,
            "filter_overlong_prompts": True,
            "apply_chat_template_kwargs": manifest["chat_template"],
        }
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    # Files of all sets together: verl concatenates them, which needs the same columns.
    for names in (("train",), EVALUATION):
        data = RLHFDataset([str(out / f"{n}.parquet") for n in names], tokenizer, config)
        written = [row for n in names for row in _rows(out, n)]
        assert len(data) == len(written)
        for i in range(len(data)):
            row = data[i]
            assert row["raw_prompt"] == written[i]["prompt"] and row["index"] == written[i]["extra_info"]["index"]
            assert all(row[column] == written[i][column] for column in written[i])
    batch = collate_fn([data[0], data[1]])
    assert batch["reward_model"][1]["ground_truth"] == written[1]["reward_model"]["ground_truth"]
