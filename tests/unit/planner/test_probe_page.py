"""Verdicts and page of a probe: each threshold changes its own verdict, and the page says what it costs."""

from __future__ import annotations

import copy

import pytest

from verl_s2d.planner.probe_page import probe_text
from verl_s2d.planner.probe_verdicts import NOT, STANDS, covered_share, judge_model, judge_pair
from verl_s2d.recipe.planner_settings import THRESHOLD_SOURCES, Thresholds


def value(mean, stderr=0.01):
    return {"mean": mean, "stderr": stderr}


def model(**changes):
    return {
        "problems": 200,
        "samples": 8,
        "pass_at_1": value(0.35),
        "pass_at_n": value(0.7),
        "mixed": value(0.5),
        "never": 0.3,
        "always": 0.2,
        "calls_per_useful_group": 16.0,
        "parse_rate": 0.99,
        "mean_tokens": 812.4,
        "truncated": 0.03,
    } | changes


def pair(*, gap=0.2, stderr=0.03, overlap=0.8, mass=0.98, travel=0.2, largest=0.3):
    return {
        "gap": value(gap, stderr),
        "top_k": 16,
        "student_rollouts": {
            "reverse_kl": value(0.05),
            "largest_1_percent": largest,
            "separation": value(0.71) | {"problems": 90},
            "overlap_ratio": value(overlap),
            "teacher_mass_on_student_top": value(0.96),
            "student_mass_on_teacher_top": value(0.97),
            "student_mass_on_both": value(mass),
        },
        "teacher_rollouts": {"forward_kl": value(travel**2), "travel": travel},
    }


def test_labels_are_productive_from_the_threshold_on():
    (verdict,) = judge_model("student", model(), Thresholds(mixed=0.5))
    assert verdict.ok and "a useful group costs 16 verifier calls" in verdict.text
    (verdict,) = judge_model("student", model(), Thresholds(mixed=0.51))
    assert not verdict.ok and "only 50 %" in verdict.text and "easier problems" in verdict.text
    (verdict,) = judge_model("t", model(mixed=value(0.02), never=0.1, always=0.88), Thresholds())
    assert not verdict.ok and "harder problems" in verdict.text
    nothing = model(mixed=value(0.0), calls_per_useful_group=None, never=1.0, always=0.0)
    assert "no group is useful" in judge_model("t", nothing, Thresholds())[0].text


def test_answers_that_cannot_be_read_are_told():
    labels, answers = judge_model("student", model(parse_rate=0.6), Thresholds())
    assert labels.ok and not answers.ok and "40 % of finished responses" in answers.text
    assert len(judge_model("student", model(parse_rate=None), Thresholds())) == 1


@pytest.mark.parametrize(
    ("changes", "productive", "bridge", "refused"),
    [
        ({}, True, STANDS, set()),
        ({"travel": 0.31}, True, "after 2a", {"travel"}),
        ({"mass": 0.9}, True, "after 2a", {"mass"}),
        ({"gap": 0.05}, True, "after 1", {"gap_se"}),
        ({"gap": 0.05, "travel": 1.0}, True, "after 1, 2a", {"gap_se", "travel"}),
        ({"gap": 0.05}, False, NOT, {"gap_se"}),
        ({"gap": -0.2}, True, NOT, {"gap_se"}),
        ({"overlap": 0.4}, True, NOT, {"overlap"}),
    ],
)
def test_a_bridge_rests_on_the_stages_that_its_conditions_need(changes, productive, bridge, refused):
    found, verdicts = judge_pair("teacher", pair(**changes), productive, Thresholds())
    assert found == bridge
    assert {verdict.key for verdict in verdicts if not verdict.ok} == refused
    assert [verdict.what for verdict in verdicts] == ["C1", "C2", "C2", "C2"]


def test_every_threshold_of_a_pair_is_a_key():
    assert judge_pair("t", pair(gap=0.05), True, Thresholds(gap_se=1.0))[0] == STANDS
    assert judge_pair("t", pair(overlap=0.4), True, Thresholds(overlap=0.3))[0] == STANDS
    assert judge_pair("t", pair(mass=0.9), True, Thresholds(mass=0.8))[0] == STANDS
    assert judge_pair("t", pair(travel=0.5), True, Thresholds(travel=0.6))[0] == STANDS


def test_what_is_out_of_range_costs_something():
    _, (shaped, overlap, mass, travel) = judge_pair(
        "t", pair(gap=-0.2, overlap=0.2, mass=0.5, travel=0.6, largest=0.62), True, Thresholds()
    )
    assert travel.text.endswith("50 % of the way"), "a weaker teacher has no points to transfer"
    assert "weaker than the student" in shaped.text and "delta" in shaped.text
    assert "62 % of the reverse KL" in overlap.text and "2a first" in overlap.text
    assert "unlikely to one of them" in mass.text
    (*_, travel) = judge_pair("t", pair(travel=0.6), True, Thresholds())[1]
    assert "50 % of the way, about +10.0 points" in travel.text
    assert covered_share(0.6, 0.3) == 0.5 and covered_share(0.1, 0.3) == 1.0


def result():
    found = {"teacher": pair(), "teacher_small": pair(gap=-0.1, travel=0.6)}
    verdicts = []
    for role, of_pair in found.items():
        of_pair["bridge"], judged = judge_pair(role, of_pair, True, Thresholds())
        verdicts += [verdict.data() for verdict in judged]
    return {
        "recipe": "mine",
        "seed": 3,
        "problems": 200,
        "samples": 8,
        "top_k": 16,
        "models": {"student": model(parse_rate=None), "teacher": model(mixed=value(0.61)), "teacher_small": model()},
        "pairs": found,
        "thresholds": Thresholds().model_dump(),
        "verdicts": verdicts,
        "ledger": {
            "labels": 200,
            "verifier_calls": 4800,
            "sampled_tokens": 1234567,
            "teacher_scored_tokens": 34567,
        },
    }


def test_the_page_has_every_model_every_pair_and_the_cost():
    text = probe_text(result())
    lines = text.splitlines()
    assert lines[0] == "mine: 200 labelled problems, 8 samples each, seed 3"
    (student,) = (line for line in lines if line.startswith("student"))
    assert " ".join(student.split()) == "student 35.0 +- 1.0 70.0 +- 1.0 50 % 30 % 20 % 16 - 812 3.0 %"
    of_teacher = [line for line in lines if line.startswith("teacher ")][-1]
    for cell in ("+20.0 +- 3.0", "71.0 +- 1.0", "0.040", "0.050", "0.20", "100 %", "80 %", "96 %", "97 %", "98 %"):
        assert cell in of_teacher
    assert of_teacher.endswith("stands")
    out = [line for line in lines if line.startswith("- ")]
    assert [line.split(":")[0] for line in out] == ["- teacher_small, C1", "- teacher_small, C2"]
    assert out[0].endswith("(gap_se: 2, ours)") and out[1].endswith("(travel: 0.3, arXiv 2609.32722)")
    chosen = result()
    chosen["thresholds"]["travel"] = 0.25
    assert "(travel: 0.25, chosen here)" in probe_text(chosen)
    assert THRESHOLD_SOURCES.keys() == Thresholds.model_fields.keys()
    assert "A label most often gives GRPO a gradient on: teacher (61 %)." in lines
    assert "The bridge stands: teacher." in lines and "The bridge does not stand: teacher_small." in lines
    assert "200 labels, 4,800 verifier calls, 1,234,567 sampled tokens, 34,567 tokens scored by teachers" in lines[-1]


def test_the_page_of_a_probe_within_all_thresholds():
    found = result()
    del found["pairs"]["teacher_small"], found["models"]["teacher_small"]
    found["verdicts"] = [verdict for verdict in found["verdicts"] if verdict["ok"]]
    text = probe_text(copy.deepcopy(found))
    assert "Everything is within the thresholds (planner.thresholds)." in text and "Out of range" not in text
