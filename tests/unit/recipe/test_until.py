"""`until:` in a recipe: what it accepts, and refusals of rules that could never end the stage."""

from __future__ import annotations

import pytest

from verl_s2d.errors import UserError
from verl_s2d.recipe.stage_sections import Stages
from verl_s2d.validation import validated

PLATEAU = {"of": "validation", "window": 3}


def stages(**sections) -> Stages:
    return validated(Stages, sections, key="stages")


def test_rules_that_can_end_a_stage():
    read = stages(
        warmup={"steps": 200, "until": {"plateau": "divergence"}},
        opd={"steps": 20, "until": {"travel": 0.3, "plateau": {"of": "divergence", "window": 5}, "sampled_tokens": 9}},
        student_rl={"steps": 20, "validate_every": 5, "until": {"plateau": "validation"}},
        teacher_rl={"steps": 20, "until": {"sampled_tokens": 1000}},
    )
    assert read.warmup.until.written() == {"plateau": {"of": "divergence", "window": 30, "slope_se": 1.0}}
    assert read.student_rl.until.written() == {"plateau": {"of": "validation", "window": 3, "slope_se": 1.0}}
    assert read.teacher_rl.until.written() == {"sampled_tokens": 1000}


@pytest.mark.parametrize(
    ("stage", "section", "key", "words"),
    [
        ("opd", {}, "", "No rule"),
        ("opd", {"travels": 0.3}, "travels", "Did you mean travel"),
        ("opd", {"travel": 0}, "travel", "More than 0"),
        ("opd", {"travel": float("nan")}, "travel", "finite"),
        ("opd", {"sampled_tokens": 0}, "sampled_tokens", "At least 1"),
        ("opd", {"plateau": "score"}, "plateau.of", "validation, divergence"),
        ("opd", {"plateau": {"of": "divergence", "window": 2}}, "plateau.window", "At least 3"),
        ("opd", {"plateau": {"window": 5}}, "plateau.of", "missing"),
        ("opd", {"plateau": {"of": "divergence", "slope_se": -1}}, "plateau.slope_se", "At least 0"),
        ("opd", {"plateau": "validation"}, "plateau.of", "measures no validation"),
        ("opd", {"plateau": "divergence"}, "plateau.window", "At most 19"),
        ("warmup", {"travel": 0.3}, "travel", "plateau: divergence"),
        ("warmup", {"sampled_tokens": 5}, "sampled_tokens", "measures no sampled tokens"),
        ("student_rl", {"plateau": "divergence"}, "plateau.of", "measures no divergence"),
        ("student_rl", {"plateau": "validation"}, "plateau.of", "no validation"),
    ],
)
def test_refused(stage, section, key, words):
    with pytest.raises(UserError, match=words) as caught:
        stages(**{stage: {"steps": 20, "until": section}})
    assert caught.value.key == f"stages.{stage}.until{key and '.'}{key}" and caught.value.remedy


@pytest.mark.parametrize(("every", "window", "fits"), [(5, 3, True), (5, 4, False), (7, 3, False), (6, 3, True)])
def test_as_many_validations_as_the_window_come_before_the_last_step(every, window, fits):
    """With 20 steps a validation every 5 comes at 5, 10, 15, and at 20 when the stage ends anyway."""
    section = {"steps": 20, "validate_every": every, "until": {"plateau": {"of": "validation", "window": window}}}
    if fits:
        stages(student_rl=section)
        return
    with pytest.raises(UserError, match="validations") as caught:
        stages(student_rl=section)
    assert caught.value.key == "stages.student_rl.until.plateau.window"
