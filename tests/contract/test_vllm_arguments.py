"""vLLM's LLM takes the arguments that we give, and its source is where we read their names."""

from __future__ import annotations

import dataclasses

import pytest
from vllm.engine.arg_utils import EngineArgs
from vllm.platforms import current_platform
from vllm.v1.executor.abstract import Executor

from tests.support.tiny import write_model
from verl_s2d.checks.inputs.samplers import engine_arguments
from verl_s2d.recipe.engine_settings import COMPUTED, OPERATIONAL
from verl_s2d.sampling.in_verl.samples_groups import ONE_PROCESS


def test_the_arguments_read_from_the_source_are_those_of_the_class():
    fields = {field.name for field in dataclasses.fields(EngineArgs)}
    assert engine_arguments() == {name for name in fields if not name.startswith("_")}


def test_what_is_computed_or_operational_exists():
    assert not COMPUTED.keys() & OPERATIONAL
    assert COMPUTED.keys() | OPERATIONAL <= engine_arguments()


@pytest.mark.skipif(not current_platform.is_cpu(), reason="vLLM's CPU build alone replaces an executor")
@pytest.mark.parametrize(("asked", "given"), [("uni", "MultiprocExecutor"), (ONE_PROCESS, "UniProcExecutor")])
def test_on_a_cpu_the_executor_of_one_process_has_to_be_named_by_its_class(asked, given, tmp_path):
    arguments = EngineArgs(model=str(write_model(tmp_path)), dtype="float32", distributed_executor_backend=asked)
    assert Executor.get_class(arguments.create_engine_config()).__name__ == given
