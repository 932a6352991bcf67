"""`verl-s2d prepare` on ../shared/data: digests, counts, halves, contamination, and verl's own dataset class."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support.paths import ROOT
from tests.support.tiny import write_tokenizer
from verl_s2d.data import slices, templates
from verl_s2d.data.prepare import Options, prepare
from verl_s2d.data.problems import check_disjoint, read_problems

SHARED = ROOT.parent / "shared" / "data"
EVALUATION = ("aime24", "aime25", "math500")
SETS = ("dapo-math-17k", *EVALUATION)

DIGESTS = {
    "dapo-math-17k": "21bd5e6434474cb7",
    "aime24": "dc1f68f844d41722",
    "aime25": "1b965d1cd676982b",
    "math500": "dda356f169ec27c8",
}
HALVES = {
    "seed": 0,
    "1h": 8_086,
    "2h": 8_086,
    "digest": "2483e2719da4dcc3439ba3ac2fd881a518fc5bba0b594a1c71117362117a1a82",
}

needs_shared = pytest.mark.skipif(
    not all((SHARED / f"{name}.parquet").is_file() for name in SETS),
    reason="the published sets are not beside the repository, in ../shared/data",
)


def options(out, **changes) -> Options:
    return Options(out=str(out), sources={n: str(SHARED / f"{n}.parquet") for n in SETS}, **changes)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("prepared")
    return out, prepare(options(out))


@needs_shared
def test_digests_are_the_same_for_ever(prepared):
    _, manifest = prepared
    assert {name: one["digest"][:16] for name, one in manifest["sets"].items()} == DIGESTS
    assert manifest["halves"] == HALVES


@needs_shared
def test_counts(prepared):
    _, manifest = prepared
    train = manifest["sets"]["dapo-math-17k"]
    counted = train["duplicates"]
    assert (train["rows"], train["problems"], train["templates"]) == (17_917, 16_172, {"dapo": 17_917})
    assert (counted["identical"], counted["same_text"], counted["unresolved"]) == (0, 1_699, 46)
    assert train["rows"] == train["problems"] + sum(counted[k] for k in ("identical", "same_text", "unresolved"))
    assert len(counted["contradictions"]) == 25
    for name, count in (("math500", 500), ("aime24", 30), ("aime25", 30)):
        one = manifest["sets"][name]
        assert (one["rows"], one["problems"], one["templates"]) == (count, count, {"boxed": count})


@needs_shared
def test_contamination_of_the_published_sets(prepared):
    _, manifest = prepared
    overlaps = manifest["overlaps"]
    assert {o["eval_set"] for o in overlaps} == {"math500"}, "DAPO-Math-17k has no problem of AIME 2024 or 2025"
    assert [o["how"] for o in overlaps].count("exact") == 8 and len(overlaps) == 30
    assert manifest["sets"]["math500"]["overlapping"] == 25
    assert manifest["sets"]["dapo-math-17k"]["overlapping"] == len({o["train_id"] for o in overlaps}) == 30


@needs_shared
def test_preparing_again_gives_the_same_bytes(prepared, tmp_path):
    out, manifest = prepared
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    assert set(before) == {"train.parquet", "prepared.json", "slices.json", *(f"{n}.parquet" for n in EVALUATION)}
    assert prepare(options(tmp_path, eval="math500, aime25,aime24")) == manifest
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@needs_shared
def test_halves_are_those_of_the_workflow(prepared, tmp_path):
    out, manifest = prepared
    slices.write_slices(slices.Options(train=str(out / "train.parquet"), out=str(tmp_path), seed=0))
    assert (tmp_path / "slices.json").read_bytes() == (out / "slices.json").read_bytes()
    summary = json.loads((out / "slices.json").read_text())
    assert summary["digest"] == manifest["halves"]["digest"] == slices.slices_digest(summary["slices"])
    first, second = (set(summary["slices"][half]) for half in ("1h", "2h"))
    assert not first & second and len(first) + len(second) == manifest["sets"]["dapo-math-17k"]["problems"]


@needs_shared
def test_a_recipe_accepts_what_remove_leaves(prepared):
    out, manifest = prepared
    overlapping = {o["train_id"] for o in manifest["overlaps"]}
    left = [p for p in read_problems(out / "train.parquet") if p.id not in overlapping]
    assert len(left) == 16_172 - 30
    check_disjoint(left, {n: read_problems(out / f"{n}.parquet") for n in EVALUATION})


@needs_shared
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


@needs_shared
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


@needs_shared
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
        for i in range(0, len(data), 101 if names == ("train",) else 1):
            row = data[i]
            assert row["raw_prompt"] == written[i]["prompt"] and row["index"] == written[i]["extra_info"]["index"]
            assert all(row[column] == written[i][column] for column in written[i])
    batch = collate_fn([data[0], data[1]])
    assert batch["reward_model"][1]["ground_truth"] == written[1]["reward_model"]["ground_truth"]
