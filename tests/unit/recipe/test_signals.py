"""The signal of stages 2a and 2b in a recipe: keys of its own, models by role, a type of the recipe's own."""

from __future__ import annotations

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from tests.support.workflow.project import settings, write_project
from verl_s2d.errors import UserError
from verl_s2d.recipe.load import load_recipe
from verl_s2d.stages.planning import make_plan

OWN = """
from verl_s2d.signals.sampled import Sampled


class Shifted(Sampled):
    type: str = "shifted"
    by: float = {by}

    def advantages(self, student_log_probs, frozen, mask):
        return super().advantages(student_log_probs, frozen, mask) + self.by * mask
"""


def node_of(directory, kind="opd", **changes):
    recipe = load_recipe(write_project(directory, **changes))
    plan = make_plan(recipe, run_dir=directory / "run", rows=["half-split"])
    node = next(node for node in plan.order if node.kind == kind)
    return node, node.stage.command(node, plan.context, 1).argv


@pytest.mark.parametrize(("section", "kind"), [("warmup", "warmup"), ("opd", "opd")])
def test_both_stages_take_the_same_section(tmp_path, section, kind):
    chosen = {"type": "jsd", "beta": 0.3, "keep_tokens": 0.5}
    node, argv = node_of(tmp_path, kind, **{f"stages__{section}__signal": chosen})
    assert node.settings["signal"] == chosen
    assert {f"+s2d.signal.{key}={value}" for key, value in chosen.items()} <= set(argv)


def test_a_key_changes_what_is_built_and_a_default_that_is_written_does_not(tmp_path):
    silent, written, other = (
        node_of(tmp_path, stages__opd__signal=signal)[0].digest
        for signal in ("jsd", {"type": "jsd", "beta": 0.5}, {"type": "jsd", "beta": 0.3})
    )
    assert silent == written != other


def test_a_ranking_of_tokens_reaches_the_command_and_changes_what_is_built(tmp_path):
    tip = {"type": "reverse_kl", "keep_tokens": 0.5}
    q3 = tip | {"keep_by": "q3", "clip_divergence": 0.98}
    (plain, _), (named, _), (other, argv) = (
        node_of(tmp_path, stages__opd__signal=signal) for signal in (tip, tip | {"keep_by": "tip"}, q3)
    )
    assert plain.digest == named.digest != other.digest
    assert {"+s2d.signal.keep_by=q3", "+s2d.signal.clip_divergence=0.98"} <= set(argv)


def test_a_second_frozen_model_comes_from_its_role(tmp_path):
    models = {"base": settings()["student"]}
    node, argv = node_of(tmp_path, stages__opd__signal={"type": "exopd", "lambda": 1.5}, models=models)
    assert set(node.stage.frozen_roles(node)) == {"teacher", "base"} <= set(node.sources)
    assert "+s2d.signal.lambda=1.5" in argv
    assert any(argument.startswith("+s2d.models.base.path=") for argument in argv)
    with pytest.raises(UserError) as caught:
        node_of(tmp_path, stages__opd__signal="sampled", models=models)
    assert caught.value.key == "models.base", "a model that neither a row nor a signal reads"


def test_a_signal_of_ones_own_is_a_file_beside_the_recipe(tmp_path):
    chosen = {"stages__opd__signal": {"type": "mine.py:Shifted", "beta": 0.5}}
    (tmp_path / "mine.py").write_text(OWN.format(by=1.0))
    node, argv = node_of(tmp_path, **chosen)
    assert node.settings["signal"] == {"type": "Shifted", "beta": 0.5, "whiten": False, "clip": None, "by": 1.0}
    assert f"+s2d.signal.type='{tmp_path}/mine.py:Shifted'" in [a.replace('"', "'") for a in argv] or (
        f"+s2d.signal.type={tmp_path}/mine.py:Shifted" in argv
    )
    (tmp_path / "mine.py").write_text(OWN.format(by=1.0) + "# another content\n")
    assert node_of(tmp_path, **chosen)[0].digest != node.digest
    with pytest.raises(UserError) as caught:
        node_of(tmp_path, stages__opd__signal={"type": "mine.py:Shifted", "lambda": 1.5})
    assert caught.value.key == "stages.opd.signal.lambda"


def test_terms_name_the_models_that_a_stage_asks(tmp_path):
    student = settings()["student"]
    models = {"base": student, "code": student}
    chosen = {"type": "composed", "terms": {"code": 0.5, "teacher": 1, "base": -0.5}}
    node, argv = node_of(tmp_path, stages__opd__signal=chosen, models=models)
    assert node.stage.frozen_roles(node) == ("teacher", "base", "code")
    assert any(argument.startswith("+s2d.models.code.path=") for argument in argv)
    [written] = [argument for argument in argv if argument.startswith("+s2d.signal.terms=")]
    assert OverridesParser.create().parse_override(written).value() == {"teacher": 1.0, "base": -0.5, "code": 0.5}
    again = chosen | {"terms": dict(reversed(chosen["terms"].items()))}
    assert node_of(tmp_path, stages__opd__signal=again, models=models)[0].digest == node.digest
    with pytest.raises(UserError) as caught:
        node_of(tmp_path, stages__opd__signal=chosen, models={"base": student})
    assert caught.value.key == "models.code"
    with pytest.raises(UserError) as caught:
        node_of(tmp_path, stages__opd__signal=chosen | {"terms": {"teacher": 1}}, models=models)
    assert caught.value.key in ("models.base", "models.code"), "models that no signal reads"


@pytest.mark.parametrize(("section", "kind"), [("warmup", "warmup"), ("opd", "opd")])
def test_a_delta_starts_from_the_student_of_the_recipe(tmp_path, section, kind):
    models = {"base": settings()["teacher"]}
    node, argv = node_of(tmp_path, kind, **{f"stages__{section}__signal": "delta_exact"}, models=models)
    assert node.stage.frozen_roles(node) == ("teacher", "base", "student")
    assert any(a.startswith("+s2d.models.student.path=") and str(tmp_path / "student") in a for a in argv)


def test_a_role_that_is_the_name_of_another_input_is_refused(tmp_path):
    chosen = {"type": "composed", "terms": {"teacher": 1.5, "slices": -0.5}}
    with pytest.raises(UserError) as caught:
        node_of(tmp_path, stages__opd__signal=chosen, models={"slices": settings()["student"]})
    assert (caught.value.key, caught.value.value) == ("stages.opd.signal", "slices")
