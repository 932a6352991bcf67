"""Comparison of two models on rollouts of both: every number against its definition in float64, on real tiny models."""

from __future__ import annotations

import json
import math
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.divergence_reference import definition
from tests.support.tiny import write_problems
from verl_s2d.gpu_check.tiny_model import Shape, write_model
from verl_s2d.stages.compare.compare_models import Options, main, separation
from verl_s2d.stages.compare.pair_scores import FrozenNetwork, score
from verl_s2d.stages.compare.scored_rollouts import ScoredRollout, batches
from verl_s2d.stages.evaluate.scoring import GENERATIONS
from verl_s2d.stages.evaluate.statistics import ratio_and_stderr

TOKENS, K = 30, 4
PROBLEMS, SAMPLES = 5, 3


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two models with 30 tokens and embeddings padded to 32 and 36, problems, and random rollouts of both."""
    directory, rng = tmp_path_factory.mktemp("pair"), random.Random(3)
    student = write_model(directory / "student", Shape(seed=1, tokens=TOKENS, vocabulary=32, spread=0.3))
    teacher = write_model(
        directory / "teacher", Shape(seed=2, tokens=TOKENS, vocabulary=36, hidden=48, layers=3, spread=0.3)
    )
    problems = write_problems(directory / "problems.parquet", PROBLEMS)
    ids = [row["index"] for row in pq.read_table(problems)["extra_info"].to_pylist()]
    files = {}
    for side in ("student", "teacher"):
        rows = []
        for number, problem in enumerate(ids):
            for sample in range(SAMPLES):
                response = [rng.randrange(TOKENS) for _ in range(rng.randint(1, 7))]
                rows.append(
                    {
                        "set": "all",
                        "id": problem,
                        "sample": sample,
                        "response": rng.choice([r"\boxed{3}", "nothing"]),
                        "response_ids": response,
                        "finish_reason": rng.choice(["stop", "length"]),
                        "correct": number > 0 and sample < number,
                    }
                )
        files[side] = directory / f"{side}.parquet"
        pq.write_table(pa.Table.from_pylist(rows, GENERATIONS), files[side])
    return student, teacher, problems, files


def reference(made, side: str) -> list[dict]:
    """Score each rollout alone, without padding, from whole logits in float64."""
    student, teacher, problems, files = made
    networks = [AutoModelForCausalLM.from_pretrained(m, dtype=torch.float64).eval() for m in (student, teacher)]
    tokenizer = AutoTokenizer.from_pretrained(student)
    prompts = {
        row["extra_info"]["index"]: tokenizer.apply_chat_template(
            row["prompt"], add_generation_prompt=True, return_dict=False
        )
        for row in pq.read_table(problems).to_pylist()
    }
    found = []
    for row in pq.read_table(files[side]).to_pylist():
        prompt, response = prompts[row["id"]], row["response_ids"]
        ids = torch.tensor([[*prompt, *response]])
        with torch.no_grad():
            s, t = (network(ids).logits[0, len(prompt) - 1 : -1, :TOKENS].log_softmax(-1) for network in networks)
        tops = [[set(x.topk(K).indices[i].tolist()) for i in range(len(response))] for x in (s, t)]
        mine = torch.tensor(response)[:, None]
        found.append(
            row
            | {
                "forward_kl": definition(s, t, "forward_kl"),
                "reverse_kl": definition(s, t, "reverse_kl"),
                "student_entropy": -(s.exp() * s).sum(-1),
                "teacher_entropy": -(t.exp() * t).sum(-1),
                "overlap_ratio": torch.tensor([len(a & b) / K for a, b in zip(*tops, strict=True)]),
                "teacher_mass_on_student_top": torch.tensor(
                    [t[i, sorted(ids)].exp().sum() for i, ids in enumerate(tops[0])]
                ),
                "student_mass_on_teacher_top": torch.tensor(
                    [s[i, sorted(ids)].exp().sum() for i, ids in enumerate(tops[1])]
                ),
                "student_mass_on_both": torch.tensor(
                    [s[i, sorted(a & b)].exp().sum() for i, (a, b) in enumerate(zip(*tops, strict=True))]
                ),
                "reward": (t.gather(1, mine) - s.gather(1, mine)).sum().item(),
            }
        )
    return found


def expected_mean(rows: list[dict], name: str) -> tuple[float, float]:
    """Mean over tokens, and the standard error of a ratio over problems, written out."""
    ids = sorted({row["id"] for row in rows})
    totals = [sum(row[name].double().sum().item() for row in rows if row["id"] == i) for i in ids]
    tokens = [sum(len(row["response_ids"]) for row in rows if row["id"] == i) for i in ids]
    mean, n = sum(totals) / sum(tokens), len(ids)
    squares = sum((t - mean * w) ** 2 for t, w in zip(totals, tokens, strict=True))
    return mean, math.sqrt(n / (n - 1) * squares) / sum(tokens)


def compared(made, out, **more):
    student, teacher, problems, files = made
    main(
        Options(
            student=str(student),
            teacher=str(teacher),
            problems=str(problems),
            student_rollouts=str(files["student"]),
            teacher_rollouts=str(files["teacher"]),
            out=str(out),
            device="cpu",
            **{"top_k": K} | more,
        )
    )
    return json.loads((out / "compare.json").read_text())


@pytest.mark.parametrize("batch_tokens", [1, 24, 4096])
def test_every_number_is_its_definition_whatever_the_batches(made, tmp_path, batch_tokens):
    found = compared(made, tmp_path, batch_tokens=batch_tokens, verifier="math")
    for side, names in (
        ("teacher", ["forward_kl"]),
        (
            "student",
            [
                *("reverse_kl", "student_entropy", "teacher_entropy", "overlap_ratio"),
                *("teacher_mass_on_student_top", "student_mass_on_teacher_top", "student_mass_on_both"),
            ],
        ),
    ):
        rows, told = reference(made, side), found[f"{side}_rollouts"]
        for name in names:
            mean, stderr = expected_mean(rows, name)
            assert told[name] == {"mean": pytest.approx(mean, rel=2e-5), "stderr": pytest.approx(stderr, rel=1e-3)}
        finished = [row for row in rows if row["finish_reason"] == "stop"]
        assert told["parse_rate"] == pytest.approx(sum("boxed" in row["response"] for row in finished) / len(finished))
        assert told["tokens"] == sum(len(row["response_ids"]) for row in rows)
        assert (told["rollouts"], told["problems"]) == (PROBLEMS * SAMPLES, PROBLEMS)
        assert told["truncated"] == len(rows) - len(finished)
    rows = reference(made, "student")
    kl = torch.cat([row["reverse_kl"] for row in rows])
    told = found["student_rollouts"]
    assert told["largest_1_percent"] == pytest.approx((kl.max() / kl.sum()).item(), rel=2e-5)
    wins = [
        [
            r["reward"] > w["reward"]
            for r in rows
            for w in rows
            if r["id"] == w["id"] == i and r["correct"] > w["correct"]
        ]
        for i in {row["id"] for row in rows}
    ]
    shares = [sum(of_problem) / len(of_problem) for of_problem in wins if of_problem]
    assert told["separation"]["mean"] == pytest.approx(sum(shares) / len(shares))
    assert told["separation"]["problems"] == len(shares) == 2
    forward = found["teacher_rollouts"]["forward_kl"]["mean"]
    assert found["teacher_rollouts"]["travel"] == pytest.approx(math.sqrt(forward))
    assert found["scored_tokens"] == found["student_rollouts"]["tokens"] + found["teacher_rollouts"]["tokens"]


def test_a_model_compared_with_itself_is_no_distance_away(made, tmp_path):
    student, _, problems, files = made
    found = compared((student, student, problems, files), tmp_path)
    told = found["student_rollouts"]
    assert told["reverse_kl"]["mean"] == pytest.approx(0, abs=1e-6)
    assert found["teacher_rollouts"]["travel"] < 1e-3
    assert told["overlap_ratio"] == {"mean": 1, "stderr": 0}
    assert told["separation"]["mean"] == 0.5 and told["parse_rate"] is None
    assert told["student_mass_on_both"]["mean"] == pytest.approx(told["student_mass_on_teacher_top"]["mean"])


def test_a_head_with_a_cap_gives_the_networks_own_logits():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 24, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1, "final_logit_softcapping": 2.0}
    network = Gemma2ForCausalLM(Gemma2Config(**sizes, attn_implementation="eager")).double().eval()
    with torch.no_grad():
        network.lm_head.weight.mul_(40)
    other = Gemma2ForCausalLM(Gemma2Config(**sizes, attn_implementation="eager")).double().eval()
    rollouts = [
        ScoredRollout("a", [1, 2], [3, 4, 5], "", True, True),
        ScoredRollout("b", [6], [7], "", True, False),
    ]
    found = score(
        FrozenNetwork(network), FrozenNetwork(other), rollouts, objective="reverse_kl", vocab_size=20, top_k=4
    )
    for rollout, of_rollout in zip(rollouts, found, strict=True):
        ids = torch.tensor([[*rollout.prompt, *rollout.response]])
        with torch.no_grad():
            s, t = (n(ids).logits[0, len(rollout.prompt) - 1 : -1, :20] for n in (network, other))
        torch.testing.assert_close(of_rollout.divergences, definition(s, t, "reverse_kl"))
        assert s.abs().max() > 1.0, "the cap is at work"


def test_separation_counts_pairs_of_the_same_problem_only():
    def rollout(problem, correct):
        return ScoredRollout(problem, [1], [2], "", True, correct)

    rollouts = [rollout("a", True), rollout("a", False), rollout("a", False), rollout("b", True), rollout("c", False)]
    rollouts += [rollout("d", True), rollout("d", False)]
    found = separation(rollouts, [1.0, 0.0, 1.0, -9.0, 9.0, 0.0, 1.0])
    assert found == {"mean": pytest.approx((0.75 + 0.0) / 2), "stderr": pytest.approx(0.375), "problems": 2}
    assert separation(rollouts[3:5], [0.0, 0.0]) == {"mean": None, "stderr": None, "problems": 0}


def test_batches_hold_every_rollout_once_within_their_tokens():
    rng = random.Random(0)
    rollouts = [
        ScoredRollout("", [0] * rng.randint(1, 20), [0] * rng.randint(1, 60), "", True, True) for _ in range(50)
    ]
    made = list(batches(rollouts, 100))
    assert sorted(place for batch in made for place in batch) == list(range(50))
    assert all(len(batch) == 1 or max(len(rollouts[p]) for p in batch) * len(batch) <= 100 for batch in made)


def test_the_error_of_a_ratio_is_that_of_resampled_clusters():
    generator = torch.Generator().manual_seed(0)
    weights = torch.randint(5, 60, (400,), generator=generator).double()
    totals = weights * (0.3 + 0.1 * torch.randn(400, generator=generator, dtype=torch.float64))
    mean, stderr = ratio_and_stderr(totals.tolist(), weights.tolist())
    chosen = torch.randint(400, (4000, 400), generator=generator)
    resampled = totals[chosen].sum(1) / weights[chosen].sum(1)
    assert mean == pytest.approx((totals.sum() / weights.sum()).item())
    assert stderr == pytest.approx(resampled.std().item(), rel=0.05)
    assert math.isnan(ratio_and_stderr([1.0], [2.0]).stderr)
