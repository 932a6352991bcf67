"""Values cross command lines with their types: those of this project's modules and recipe scripts, and hydra's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from tests.support.workflow.project import write_project
from verl_s2d import arguments
from verl_s2d.errors import UserError
from verl_s2d.recipe.load import load_recipe
from verl_s2d.stages.planning import make_plan
from verl_s2d.stages.rollouts.rollout_cache import Options as RolloutOptions
from verl_s2d.verl_settings.overrides import hydra_arguments, without_interpolation

LOOKS_LIKE_ANOTHER_TYPE = [
    *("2024", "20240726", "1e3", "-0", "0x10", "1_000", "true", "on", "null", "None", "nan", "NaN", "-Infinity", ""),
    *(
        "26 Jul 2024",
        "2024-07-26",
        '"quoted"',
        "[1]",
        "{a: b}",
        "it's",
        "a\\",
        "\\'",
        "${oc.env:HOME}",
        "\\${x}",
        "a=b",
        "é",
    ),
]
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")) | st.sampled_from(
    LOOKS_LIKE_ANOTHER_TYPE
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
NAMES = st.sampled_from(["date", "tools", "x_1", "Effort"])
VALUES = st.recursive(
    SCALARS, lambda below: st.lists(below, max_size=3) | st.dictionaries(NAMES, below, max_size=2), max_leaves=5
)


@dataclass(frozen=True)
class Options:
    text: str = ""
    maybe: str | None = "given"
    number: float = 0.0
    whole: int | None = None
    flag: bool = False
    several: list[str] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    free: dict[str, Any] = field(default_factory=dict)


def of_hydra(options: dict[str, Any]) -> dict[str, Any]:
    """Options as verl's configuration has them in the end."""
    written = hydra_arguments({f"+data.{name}": without_interpolation(value) for name, value in options.items()})
    config = OmegaConf.create({"data": {}})
    for override in OverridesParser.create().parse_overrides(written):
        OmegaConf.update(config, override.key_or_group, override.value(), merge=True, force_add=True)
    return OmegaConf.to_container(config, resolve=True)["data"]


@settings(deadline=None)
@given(st.dictionaries(NAMES, VALUES))
def test_options_of_the_chat_template_are_the_same_in_both_command_lines(options):
    written = arguments.plain_arguments({f"free.{name}": value for name, value in options.items()})
    assert repr(arguments.parse(written, Options).free) == repr(options) == repr(of_hydra(options))


@settings(deadline=None)
@given(
    st.builds(
        Options,
        text=TEXT,
        maybe=st.none() | TEXT,
        number=st.floats(allow_nan=False, allow_infinity=False),
        whole=st.none() | st.integers(),
        flag=st.booleans(),
        several=st.lists(TEXT, max_size=3),
    )
)
def test_a_field_of_any_type_is_read_as_it_was_written(options):
    given = {name: value for name, value in vars(options).items() if name not in ("names", "free")}
    assert arguments.parse(arguments.plain_arguments(given), Options) == options


@pytest.mark.parametrize("text", LOOKS_LIKE_ANOTHER_TYPE)
def test_text_in_a_map_of_texts(text):
    assert arguments.parse(arguments.plain_arguments({"names.x": text}), Options).names == {"x": text}


@pytest.mark.parametrize("word", ["2024", "1.50", "true", "[1]", "math", "p=q"])
def test_words_that_a_user_types_stay_text_where_text_is_expected(word):
    assert arguments.parse([f"text={word}", f"maybe={word}"], Options) == Options(text=word, maybe=word)


def test_a_key_that_hydra_cannot_take_is_refused():
    with pytest.raises(UserError, match="cannot carry a key"):
        hydra_arguments({"a": {"2024": 1}})


def test_options_of_a_recipe_reach_every_stage_with_their_types(tmp_path):
    options = {
        "date_string": "2024",
        "reasoning": "true",
        "tools": None,
        "level": 3,
        "day": "2024-07-26",
        "cost": "${5}",
    }
    recipe = write_project(tmp_path, data__chat_template=options)
    recipe.write_text(recipe.read_text().replace("'2024-07-26'", "2024-07-26"))  # yaml's own type for dates
    plan = make_plan(load_recipe(recipe), run_dir=tmp_path / "run", rows=["half-split"])
    argv = {node.name: node.stage.command(node, plan.context, 1).argv[3:] for node in plan.order}
    sampled = [a for a in argv["rollouts-1h"] if a.startswith("chat_template.")]
    required = ["model=m", "data=d", "out=o", "max_tokens=1"]
    assert arguments.parse([*required, *sampled], RolloutOptions).chat_template == options
    prefix = "+data.apply_chat_template_kwargs."
    trained = [a for a in argv["student-rl-2h"] if a.startswith(prefix)]
    config = OmegaConf.create({"data": {"apply_chat_template_kwargs": {}}})
    for override in OverridesParser.create().parse_overrides(trained):
        OmegaConf.update(config, override.key_or_group, override.value(), force_add=True)
    assert OmegaConf.to_container(config, resolve=True)["data"]["apply_chat_template_kwargs"] == options


@pytest.mark.parametrize(
    ("options", "key"),
    [({"date": float("nan")}, "data.chat_template.date"), ({"two words": 1}, "data.chat_template.two words")],
)
def test_options_that_cannot_arrive_are_refused(tmp_path, options, key):
    with pytest.raises(UserError) as caught:
        load_recipe(write_project(tmp_path, data__chat_template=options))
    assert caught.value.key == key
