"""vLLM's LLM takes the arguments that we give, and its source is where we read their names."""

from __future__ import annotations

import dataclasses

from vllm.engine.arg_utils import EngineArgs

from verl_s2d.checks.inputs.samplers import engine_arguments
from verl_s2d.recipe.engine_settings import COMPUTED, OPERATIONAL


def test_the_arguments_read_from_the_source_are_those_of_the_class():
    fields = {field.name for field in dataclasses.fields(EngineArgs)}
    assert engine_arguments() == {name for name in fields if not name.startswith("_")}


def test_what_is_computed_or_operational_exists():
    assert not COMPUTED.keys() & OPERATIONAL
    assert COMPUTED.keys() | OPERATIONAL <= engine_arguments()
