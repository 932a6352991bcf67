"""Prompts without labels in real verl, vLLM and Ray, at minimum size: a recipe's pool, and one the student makes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml

from tests.support.minimal_recipe import write_minimal_recipe
from tests.support.tiny import write_problems

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def write_pool(path: Path, *, held: int, prompts: int) -> None:
    """Write the questions of sums that `data.py` does not use: it takes the first `held` of the same order."""
    sums = pq.read_table(write_problems(path.with_suffix(".parquet"), held + prompts)).slice(held)
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in sums["prompt"].to_pylist()))
    path.with_suffix(".parquet").unlink()


@pytest.mark.timeout(3000)
def test_a_teacher_is_distilled_on_prompts_without_labels(tmp_path):
    write_pool(tmp_path / "more.jsonl", held=40, prompts=24)
    recipe, run_dir = write_minimal_recipe(tmp_path, name="pool"), tmp_path / "run"
    settings = yaml.safe_load(recipe.read_text())
    settings["data"]["prompts"] = "more.jsonl"
    settings["rows"] = ["bridge-unlabelled", "bridge-more-prompts"]
    recipe.write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "verl_s2d.cli"]
    subprocess.run([*command, "check", str(recipe)], check=True, stdout=sys.stderr, timeout=600)
    run = [*command, "run", str(recipe), "--run-dir", str(run_dir)]
    subprocess.run(run, check=True, stdout=sys.stderr, timeout=2400)

    manifests = [json.loads(path.read_text()) for path in run_dir.glob("stages/*/manifest.json")]
    read = {manifest["name"]: manifest["ledger"]["prompts_read"] for manifest in manifests}
    labels = {manifest["name"]: manifest["ledger"]["labels_read"] for manifest in manifests}
    # Two prompts' rollouts of each prompt; two batches of eight prompts.
    assert len(read["rollouts-prompts"]) == 24 and len(read["opd-prompts"]) == 16
    assert 0 < len(read["opd-all+prompts"]) < 16 and set(read["opd-all+prompts"]) < set(read["rollouts-all+prompts"])
    assert not read["teacher-rl-all"] and labels["teacher-rl-all"]
    assert not any(labels[name] for name in read if name.partition("-")[0] in ("opd", "warmup", "rollouts"))
    report = json.loads((run_dir / "report.json").read_text())
    ledger = {row["name"]: row["ledger"] for row in report["rows"]}
    assert [ledger[row]["prompts_read"] for row in settings["rows"]] == [24, 24]
    assert ledger["bridge-unlabelled"]["labels_read"] == len(labels["teacher-rl-all"])
    assert "| prompts |" in (run_dir / "report.md").read_text()
    for manifest in manifests:
        counted = {k: len(v) if isinstance(v, list) else v for k, v in manifest["ledger"].items() if v}
        print(manifest["name"], counted)


@pytest.mark.timeout(3000)
def test_a_student_makes_the_prompts_of_its_distillation(tmp_path):
    recipe, run_dir = write_minimal_recipe(tmp_path, name="g-zero", rows=["g-zero"]), tmp_path / "run"
    settings = yaml.safe_load(recipe.read_text())
    # Any three words are a question here, and the fourth is its hint.
    settings["stages"]["g_zero"] = {
        **{"prompts": ["3 + 4 =", "5 ="], "pattern": r"^(?P<question>\S+ \S+ \S+) (?P<hint>\S+)", "template": "none"},
        **{"proposals": 60, "proposal_tokens": 6, "question_characters": [3, 80], "hint_characters": [1, 40]},
        **{"hint_prompt": "{question} {hint}", "temperature": 1.0},
    }
    recipe.write_text(yaml.safe_dump(settings))
    run = [sys.executable, "-m", "verl_s2d.cli", "run", str(recipe), "--run-dir", str(run_dir)]
    subprocess.run(run, check=True, stdout=sys.stderr, timeout=2400)

    manifests = {json.loads(p.read_text())["name"]: p.parent for p in run_dir.glob("stages/*/manifest.json")}
    made = manifests["g-zero-1"]
    proposals, summary = (
        pq.read_table(made / "proposals.parquet").to_pylist(),
        json.loads((made / "g_zero.json").read_text()),
    )
    assert len(proposals) + sum(n for why, n in summary["dropped"].items() if why != "percentile") == 60
    kept = [p for p in proposals if p["kept"]]
    assert 8 <= len(kept) == summary["prompts"] <= len(proposals) / 2 + 1
    assert max(p["delta"] for p in kept) <= min(p["delta"] for p in proposals if not p["kept"])
    prompts = pq.read_table(made / "prompts.parquet")
    assert [m[0]["content"] for m in prompts["prompt"].to_pylist()] == [p["question"] for p in kept]
    deltas = reference_deltas(manifests["student"], proposals)
    assert max(abs(p["delta"] - delta) for p, delta in zip(proposals, deltas, strict=True)) < 1e-4

    ledgers = {name: json.loads((path / "manifest.json").read_text())["ledger"] for name, path in manifests.items()}
    assert ledgers["g-zero-1"]["sampled_tokens"] == summary["sampled_tokens"] > 60
    assert not any(
        ledgers[name]["labels_read"] or ledgers[name]["verifier_calls"] for name in ledgers if "g-zero-1" in name
    )
    read = set(ledgers["opd-prompts-g-zero-1"]["prompts_read"])
    assert read and read <= {row["index"] for row in prompts["extra_info"].to_pylist()}
    for name, ledger in ledgers.items():
        print(name, {k: len(v) if isinstance(v, list) else v for k, v in ledger.items() if v})


def reference_deltas(model: Path, proposals: list[dict]) -> list[float]:
    """Compute hint-delta of each proposal with plain transformers in float64."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    student, tokenizer = (
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64),
        AutoTokenizer.from_pretrained(model),
    )

    def mean_log_prob(text: str, answer: list[int]) -> float:
        ids = torch.tensor([[*tokenizer(text)["input_ids"], *answer]])
        with torch.no_grad():
            log_probs = student(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
        return log_probs[-len(answer) :].mean().item()

    return [
        mean_log_prob(p["question"], p["answer_ids"]) - mean_log_prob(f"{p['question']} {p['hint']}", p["answer_ids"])
        for p in proposals
    ]
