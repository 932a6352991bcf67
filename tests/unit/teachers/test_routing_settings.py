"""Teachers by data source in the keys of a verl command: what is read, and what is refused before a worker starts."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.tiny import write_model
from tests.support.tiny_verl import composed
from verl_s2d.errors import UserError
from verl_s2d.stages.opd.config import read_opd_config, read_opd_settings
from verl_s2d.stages.opd.trainer import OpdTrainer
from verl_s2d.stages.shared.distillation import check_layout
from verl_s2d.teachers.data_sources import check_routing
from verl_s2d.teachers.frozen_model import FrozenModel

MATHS = ("+s2d.models.math.path=m", "+s2d.models.math.serves=[gsm8k,dapo]")
CODE = ("+s2d.models.code.path=c", "+s2d.models.code.serves=[apps]")
ROUTED = ("~s2d.teacher", *MATHS, *CODE)


def test_models_that_serve_data_sources_take_the_teachers_place():
    settings = read_opd_config(composed(*ROUTED, "+s2d.signal.type=exopd", "+s2d.models.base.path=b"))
    assert list(settings.models) == ["math", "code", "base"]
    assert settings.router.role("dapo") == "math" and settings.models["base"].serves == ()
    assert read_opd_settings(settings.written()) == settings
    assert settings.models["math"].checkpoint == FrozenModel(path="m")
    assert read_opd_config(composed()).router is None


@pytest.mark.parametrize(
    ("changes", "key", "value"),
    [
        ([*MATHS], "s2d.teacher", {"path": "teacher"}),
        ([*ROUTED, "+s2d.models.teacher.path=t"], "s2d.teacher", {"path": "t"}),
        ([*ROUTED, "+s2d.models.logic.path=l", "+s2d.models.logic.serves=[apps]"], "s2d.models.logic.serves", "apps"),
        (["~s2d.teacher", "+s2d.models.a.path=m", "+s2d.models.a.serves=[x,x]"], "s2d.models.a.serves", "x"),
        (["~s2d.teacher", "+s2d.models.a.path=m", "+s2d.models.a.serves=[]"], "s2d.models.a.serves", []),
        (["~s2d.teacher", "+s2d.models.a.path=m", "+s2d.models.a.serves=[1]"], "s2d.models.a.serves[0]", 1),
        (["~s2d.teacher", "+s2d.models.a.serves=[x]"], "s2d.models.a.path", None),
        (
            [*ROUTED, "+s2d.signal.type=composed", "+s2d.signal.terms={math: 0.5, code: 0.5}"],
            "s2d.models.math.serves",
            ["gsm8k", "dapo"],
        ),
        ([*ROUTED, "+s2d.models.logic.path=l"], "s2d.models.logic", {"path": "l"}),
    ],
)
def test_routing_that_cannot_be_meant_is_refused(changes, key, value):
    with pytest.raises(UserError) as caught:
        read_opd_config(composed(*changes))
    assert (caught.value.key, caught.value.value) == (key, value) and caught.value.remedy


@pytest.mark.parametrize("layout", [{"megatron": True}, {"sequence_parallel": True}])
def test_exact_signals_need_whole_rollouts_on_a_rank(layout):
    settings = read_opd_config(composed(*ROUTED, "+s2d.signal.type=reverse_kl"))
    check_layout(settings, megatron=False, sequence_parallel=False)
    with pytest.raises(UserError, match="whole rollouts") as caught:
        check_layout(settings, **({"megatron": False, "sequence_parallel": False} | layout))
    assert caught.value.key == "s2d.models.math.serves"


@pytest.mark.parametrize("more", [["+s2d.signal.type=top_k"], ["+s2d.teacher_prompt='{prompt} Be concise.'"]])
def test_what_one_teacher_alone_can_do_is_refused_with_several(more):
    with pytest.raises(UserError):
        read_opd_config(composed(*ROUTED, *more))


def parquet(path, sources):
    pq.write_table(pa.table({"data_source": sources}), path)
    return str(path)


def test_the_trainer_refuses_problems_without_a_teacher(tmp_path):
    for name in ("student", "m", "c"):
        write_model(tmp_path / name)
    chosen = {"actor_rollout_ref.model.path": str(tmp_path / "student")}
    keys = [f"s2d.models.{role}.path={tmp_path / path}" for role, path in (("math", "m"), ("code", "c"))]
    files = [parquet(tmp_path / "a.parquet", ["apps", "gsm8k"]), parquet(tmp_path / "b.parquet", ["aime"])]
    with pytest.raises(UserError, match="no teacher serves") as caught:
        OpdTrainer(composed(*ROUTED, *keys, f"data.train_files={files}", **chosen))
    assert caught.value.value == "aime"


def test_a_teacher_without_problems_and_a_file_without_sources_are_refused(tmp_path):
    router = read_opd_config(composed(*ROUTED)).router
    check_routing(router, parquet(tmp_path / "whole.parquet", ["apps", "gsm8k"]))
    check_routing(router, "hdfs://problems.parquet")
    with pytest.raises(UserError, match="loaded for nothing") as caught:
        check_routing(router, [parquet(tmp_path / "code.parquet", ["apps"])])
    assert caught.value.key == "models.math.serves"
    pq.write_table(pa.table({"prompt": ["x"]}), tmp_path / "plain.parquet")
    for path in (tmp_path / "plain.parquet", tmp_path / "absent.parquet"):
        with pytest.raises(UserError, match="cannot be read") as caught:
            check_routing(router, str(path))
        assert caught.value.key == "data.train_files" and caught.value.value == str(path)
