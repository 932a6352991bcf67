"""The pilot's predictions and verdicts on worlds drawn from its own laws, and on planted cases."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.unit.planner.world import World, pilot
from verl_s2d.planner.guards import gap_to_student, overlap_warnings
from verl_s2d.planner.halving import losers, piloted_roles
from verl_s2d.planner.law import Points
from verl_s2d.planner.prediction import Candidate, Pilot, Prediction, predict, recommend

TOTAL, LABELS = 1024, (64, 128, 256)
DIRECT = Candidate("direct-grpo")
BRIDGE = Candidate("full-bridge", "teacher")
SPLIT = Candidate("half-split", "teacher", share=0.5)
CANDIDATES = (DIRECT, BRIDGE, SPLIT)
SLOW, FAST = (-0.1, 0.02), (0.2, 0.25)


def curve(law, n):
    return np.exp(law[0] - law[1] * np.log(n))


def truths(cold: float, student, teacher) -> list[float]:
    """Accuracies of the three candidates by the laws that the world is drawn from."""
    a, b, c = teacher

    def bridged(n):
        return c * curve((a, b), n) ** 0.95

    stage_3 = curve(student, TOTAL / 2) / (1 - cold)
    return [1 - curve(student, TOTAL), 1 - bridged(TOTAL), 1 - bridged(TOTAL / 2) * stage_3]


def test_the_mean_prediction_is_the_truth():
    """With many problems every candidate's prediction is the law's own value."""
    made = pilot(0, TOTAL, LABELS, 0.3, (0.1, 0.15), {"teacher": (0.2, 0.25, 1.02)}, problems=20_000)
    predicted = [p.point for p in predict(made, CANDIDATES, resamples=50)]
    assert predicted == pytest.approx(truths(0.3, (0.1, 0.15), (0.2, 0.25, 1.02)), abs=0.02)


def test_intervals_cover():
    """The 90 % interval of each candidate holds the truth in 85 to 95 % of 200 draws."""
    student, teacher = (0.1, 0.15), (0.2, 0.25, 1.02)
    expected, covered, refused = truths(0.3, student, teacher), np.zeros(3), 0
    for seed in range(200):
        for i, p in enumerate(predict(pilot(seed, TOTAL, LABELS, 0.3, student, {"teacher": teacher}), CANDIDATES, 300)):
            if p.accuracy is None:
                refused += 1
                continue
            low, high = p.interval
            covered[i] += low <= expected[i] <= high
    assert refused <= 12, "a misfit by chance, in one of five fits of a draw"
    assert ((170 - refused <= covered) & (covered <= 190)).all(), covered


def test_direct_grpo_is_recommended_where_it_wins():
    """A teacher whose lessons do not reach the student, and a student that learns fast."""
    made = pilot(5, TOTAL, LABELS, 0.3, (0.3, 0.3), {"teacher": (-0.3, 0.02, 1.0)}, problems=800)
    told = recommend(predict(made, (DIRECT, BRIDGE)))
    assert told.best == "direct-grpo" and not told.rivals and told.chances["direct-grpo"] > 0.99
    assert told.text.startswith("recommended: direct-grpo")


def test_the_bridge_is_recommended_where_it_wins():
    made = pilot(5, TOTAL, LABELS, 0.2, SLOW, {"teacher": (*FAST, 1.0)}, problems=800)
    told = recommend(predict(made, (DIRECT, BRIDGE)))
    assert told.best == "full-bridge" and not told.rivals


def test_overlapping_intervals_are_too_close_to_call():
    """Two teachers with the same curve differ by chance alone."""
    teachers = {"teacher": (*FAST, 1.0), "teacher_b": (*FAST, 1.0)}
    made = pilot(6, TOTAL, LABELS, 0.2, SLOW, teachers)
    told = recommend(predict(made, (BRIDGE, Candidate("full-bridge-teacher_b", "teacher_b"))))
    assert told.rivals and told.text.startswith("too close to call")
    assert sum(told.chances.values()) == pytest.approx(1) and max(told.chances.values()) < 0.95


def test_an_unknown_candidate_blocks_the_recommendation():
    """A curve of one point: its candidate may be the best."""
    made = pilot(7, TOTAL, LABELS, 0.2, SLOW, {"teacher": (*FAST, 1.0)})
    short = made.curves["student"]
    made.curves["student"] = Points(short.labels[:1], short.right[:1])
    told = recommend(predict(made, CANDIDATES))
    assert told.best is None and told.unknown == ("direct-grpo", "half-split")
    assert told.text == "nothing is recommended: no prediction for direct-grpo, half-split"


def test_a_student_that_never_succeeds_does_not_block_the_bridge():
    made = pilot(8, TOTAL, LABELS, 0.2, SLOW, {"teacher": (*FAST, 1.0)})
    made.curves["student"] = Points(LABELS, np.zeros((3, 200)))
    predictions = predict(made, CANDIDATES)
    assert recommend(predictions).best == "full-bridge"
    assert set(losers(predictions)) == {"direct-grpo", "half-split"}


def test_nobody_ever_succeeds():
    nothing = Points(LABELS, np.zeros((3, 50)))
    told = recommend(predict(Pilot(TOTAL, np.zeros(50), {"student": nothing}), [DIRECT]))
    assert told.text == "nothing is recommended: no candidate can be predicted"


def test_a_harmful_teacher_is_predicted_below_the_start():
    world = World(4)
    made = Pilot(
        TOTAL,
        world.right([0.5])[0],
        {"student": world.points(LABELS, 0.0, 0.15), "teacher": world.points(LABELS, -0.3, 0.02)},
        {("opd", "teacher"): [world.travelled(n, 0.5, 0.35) for n in LABELS]},
    )
    direct, bridge = predict(made, (DIRECT, BRIDGE))
    assert bridge.interval[1] < 0.5 < direct.point
    assert list(losers([direct, bridge])) == ["full-bridge"]


def test_halving_keeps_what_may_still_win():
    """Only models on which a remaining candidate rests get more pilot."""
    teachers = {"teacher": (*FAST, 1.0), "teacher_weak": (-0.1, 0.02, 1.0)}
    made = pilot(9, TOTAL, LABELS, 0.2, (0.2, 0.2), teachers, problems=800)
    weak = Candidate("full-bridge-teacher_weak", "teacher_weak")
    predictions = predict(made, (DIRECT, BRIDGE, weak))
    out = losers(predictions)
    assert "full-bridge-teacher_weak" in out and "full-bridge" not in out
    assert "teacher_weak" not in piloted_roles(predictions, list(out))
    assert piloted_roles(predictions, []) == {"student", "teacher", "teacher_weak"}


def test_the_first_round_drops_nobody():
    """One point for two parameters: nothing can be predicted, so nobody can lose."""
    made = pilot(9, TOTAL, LABELS[:1], 0.2, SLOW, {"teacher": (*FAST, 1.0)})
    predictions = predict(made, CANDIDATES)
    assert all(p.blocks for p in predictions) and losers(predictions) == {}


def test_a_transfer_of_its_own_is_predicted_apart():
    made = pilot(1, TOTAL, LABELS, 0.2, SLOW, {"teacher": (*FAST, 1.0)})
    made.transfers["exopd", "teacher"] = [World(1).travelled(n, 0.2, 0.8) for n in LABELS]
    bridge, exopd = predict(made, (BRIDGE, Candidate("exopd", "teacher", transfer="exopd")))
    assert exopd.point > bridge.point


def test_gaps():
    """A gap is measured over the same problems, and 2 s.e. decide."""
    world = World(0)
    student, better, weaker = world.right([0.5, 0.7, 0.3])
    assert gap_to_student("t", better, student, 2).warning is None
    gap = gap_to_student("t", weaker, student, 2)
    assert gap.weaker and "`delta`" in gap.warning
    assert gap.mean == pytest.approx(weaker.mean() - student.mean())
    near = gap_to_student("t", student, student, 2)
    assert not near.weaker and "within 2 s.e." in near.warning


def test_overlaps_are_those_of_the_probe(tmp_path):
    assert "not known" in overlap_warnings(tmp_path, ["teacher"], 0.5)[0]
    sides = {"student_rollouts": {"overlap_ratio": {"mean": 0.4, "stderr": 0.01}}}
    (tmp_path / "probe.json").write_text(json.dumps({"pairs": {"teacher": sides}}))
    (warning,) = overlap_warnings(tmp_path, ["teacher", "other"], 0.5)
    assert "overlap of 40 %" in warning and overlap_warnings(tmp_path, ["teacher"], 0.4) == []


def test_a_prediction_has_its_reason():
    assert Prediction(DIRECT, problem="why").accuracy is None
    (alone,) = predict(Pilot(TOTAL, np.ones(10), {}), [DIRECT])
    assert alone.problem == "student has no pilot" and alone.blocks
