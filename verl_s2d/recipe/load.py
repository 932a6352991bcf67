"""yaml -> Recipe. Every key and value is checked, and each complaint names the key, the value and the remedy."""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from verl_s2d.errors import UserError
from verl_s2d.recipe.alarm_settings import Alarm, Alarms
from verl_s2d.recipe.pass_at_k import check_pass_at
from verl_s2d.recipe.schema import ROW_NAMES, Matched, Recipe, Source
from verl_s2d.sampling.engine_settings import check_engine
from verl_s2d.verl_settings.reserved_keys import COMPUTED_KEYS, bare_key
from verl_s2d.workflow import redaction

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """yaml as people write it: `1e-3` is a number (yaml 1.1 says text), and a key given twice is an error."""

    def __init__(self, stream: str):
        super().__init__(stream)
        self._flattened: set[int] = set()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Put the keys of `<<: *other` in; a mapping's own keys replace them, and are looked at before they do."""
        if id(node) in self._flattened:
            return
        self._flattened.add(id(node))
        seen: set = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise UserError(
                    f"The key is given twice, the second time on line {key_node.start_mark.line + 1}.",
                    key=str(key),
                    remedy="Keep one of the two.",
                )
            seen.add(key)
        super().flatten_mapping(node)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def load_recipe(path: str | Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        UserError: the file cannot be read, a key is unknown or missing, or a value has the wrong type or range.
    """
    path = Path(path).expanduser()
    try:
        text = path.read_text()
    except OSError as error:
        raise UserError(
            f"The recipe cannot be read: {error.strerror or error}.",
            key="recipe",
            value=str(path),
            remedy="Check the path.",
        ) from error
    try:
        data = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise UserError(
            f"The recipe is not valid yaml: {error}",
            key="recipe",
            value=str(path),
            remedy="Correct the line named above.",
        ) from error
    redaction.remember(redaction.secrets_in(data))
    recipe = dataclasses.replace(_build(Recipe, data, ""), path=path.resolve())
    _check_recipe(recipe)
    return recipe


def _check_recipe(recipe: Recipe) -> None:
    if not _NAME.fullmatch(recipe.name):
        raise UserError(
            "The name is used for a directory.",
            key="name",
            value=recipe.name,
            remedy="Use letters, digits, '.', '_', '-'.",
        )
    _check_matched(recipe.matched)
    check_rows(recipe.rows, "rows", recipe.row_names)
    if recipe.published:
        check_rows(recipe.published, "published", recipe.row_names)
    if not recipe.seeds or len(set(recipe.seeds)) != len(recipe.seeds):
        raise UserError(
            "Seeds must be a non-empty list without repetition.",
            key="seeds",
            value=recipe.seeds,
            remedy="For example [0, 1].",
        )
    check_engine(recipe.evaluation.engine, "evaluation.engine")
    if recipe.stages.rollouts is not None:
        check_engine(recipe.stages.rollouts.engine, "stages.rollouts.engine")
    check_pass_at(recipe.evaluation.pass_at, recipe.evaluation.samples, "evaluation.pass_at")
    for role in ("student", "teacher"):
        source = getattr(recipe, role)
        if source is not None and (source.model is None) == (source.script is None):
            raise UserError(
                "A model is either a hub id or directory, or made by a script.",
                key=role,
                remedy=f"Write `{role}: <hub id or directory>` or `{role}: {{script: file.py, args: {{...}}}}`.",
            )
    data = recipe.data
    if (data.source is None) == (data.train is None):
        raise UserError(
            "Training problems come either from data.source (a script) or from data.train (a parquet).",
            key="data",
            remedy="Give exactly one of data.source and data.train.",
        )
    if data.source is not None and data.source.script is None:
        raise UserError(
            "A data source is a script.", key="data.source.script", value=None, remedy="Name the script file."
        )
    if data.source is not None and data.source.trust_remote_code:
        raise UserError(
            "A data source is a script of yours; there is no model to trust.",
            key="data.source.trust_remote_code",
            value=True,
            remedy="Remove it, or set it under `student:` or `teacher:`.",
        )
    if data.train is not None and not data.eval:
        raise UserError(
            "There is nothing to evaluate on.", key="data.eval", value={}, remedy="Give {name: file.parquet}."
        )
    if data.source is not None and data.eval:
        raise UserError(
            "A data script writes its own evaluation sets.",
            key="data.eval",
            value=data.eval,
            remedy="Remove data.eval.",
        )
    opd = recipe.stages.opd
    if opd is not None and (opd.response_tokens or 0) > data.response_tokens:
        raise UserError(
            "Stage 2b would sample longer responses than any other stage.",
            key="stages.opd.response_tokens",
            value=opd.response_tokens,
            remedy=f"At most {data.response_tokens} (data.response_tokens), or leave it out.",
        )
    for name in ("teacher_rl", "warmup", "opd", "student_rl"):
        stage = getattr(recipe.stages, name)
        if stage is not None:
            stage_alarms(recipe, name)
        if getattr(stage, "validate_every", None) is not None and data.validation is None:
            raise UserError(
                "There is nothing to validate on.",
                key=f"stages.{name}.validate_every",
                value=stage.validate_every,
                remedy="Give data.validation, a parquet of labelled problems for it.",
            )
        for key in stage.verl if stage is not None else ():
            remedy = COMPUTED_KEYS.get(bare_key(key))
            if remedy:
                raise UserError(
                    "This key is computed by the workflow.",
                    key=f"stages.{name}.verl.{key}",
                    value=stage.verl[key],
                    remedy=remedy,
                )


def _check_matched(matched: Mapping[str, Matched]) -> None:
    """Names of their own, of rows that exist, and no circle."""
    for name, chosen in matched.items():
        key = f"matched.{name}"
        if name in ROW_NAMES or not _NAME.fullmatch(name):
            raise UserError(
                "A matched row is one more row, under a name of its own.",
                key=key,
                value=name,
                remedy="Use letters, digits, '.', '_', '-', and not the name of a row that there is.",
            )
        check_rows([chosen.row], f"{key}.row", ROW_NAMES)
        check_rows([chosen.to], f"{key}.to", (*ROW_NAMES, *matched))
        if chosen.to in (name, chosen.row):
            raise UserError(
                "A row cannot be matched to itself.", key=f"{key}.to", value=chosen.to, remedy="Name another row."
            )
        chain = [name]
        while chain[-1] in matched:
            chain.append(matched[chain[-1]].to)
            if chain[-1] in chain[:-1]:
                raise UserError(
                    "These rows are matched in a circle, so none of them says where to stop.",
                    key=f"{key}.to",
                    value=" -> ".join(chain),
                    remedy="Match one of them to a row that is not matched.",
                )


def check_rows(names: Iterable[str], key: str, known: Iterable[str]) -> None:
    """Raises UserError naming the first unknown row and the nearest known one."""
    names, known = list(names), list(known)
    if not names:
        raise UserError("No row is chosen.", key=key, value=names, remedy=f"Choose from {', '.join(known)}.")
    for name in names:
        if name not in known:
            raise UserError("Unknown row.", key=key, value=name, remedy=suggestion(name, known))


def stage_alarms(recipe: Recipe, stage: str) -> Alarms:
    """The recipe's alarms with what one stage says differently.

    Raises:
        UserError: a key or value of the stage's own that does not fit.
    """
    alarms: dict[str, Any] = dataclasses.asdict(recipe.alarms)
    for name, own in getattr(recipe.stages, stage).alarms.items():
        own = {"action": own} if isinstance(own, str) else own
        alarms[name] = {**alarms[name], **own} if name in alarms and isinstance(own, Mapping) else own
    return _build(Alarms, alarms, f"stages.{stage}.alarms")


def suggestion(word: str, known: Iterable[str]) -> str:
    """`Did you mean x?` when something is near, the list of what is known otherwise."""
    known = list(known)
    near = difflib.get_close_matches(str(word), known, n=1, cutoff=0.6)
    if near:
        return f"Did you mean {near[0]}?"
    if len(known) > 20:
        return "See the list of keys in verl's own configuration."
    return f"Known: {', '.join(known) or 'none'}."


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _build(cls: type, data: Any, key: str) -> Any:
    """Fill the dataclass `cls` from a mapping, checking names, types and bounds."""
    if isinstance(data, str) and cls is Source:
        data = {"model": data}
    if isinstance(data, str) and issubclass(cls, Alarm):
        data = {"action": data}
    if not isinstance(data, Mapping):
        raise UserError(
            "A mapping is expected here.", key=key or "recipe", value=data, remedy="Write `key: value` lines."
        )
    fields = {f.name: f for f in dataclasses.fields(cls) if not f.metadata.get("hidden")}
    for name in data:
        if name not in fields:
            raise UserError(
                "Unknown key.", key=_join(key, str(name)), value=data[name], remedy=suggestion(name, fields)
            )
    hints = typing.get_type_hints(cls)
    values = {}
    for name, field in fields.items():
        full = _join(key, name)
        if name in data:
            values[name] = _convert(hints[name], data[name], full)
            bound = field.metadata.get("at_least")
            if bound is not None and values[name] is not None and values[name] < bound:
                raise UserError("The value is too small.", key=full, value=values[name], remedy=f"At least {bound}.")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UserError("A required key is missing.", key=full, remedy=f"Add `{name}:` to {key or 'the recipe'}.")
    return cls(**values)


def _convert(hint: Any, value: Any, key: str) -> Any:
    """`value` as the annotated type; an int is welcome where a float is expected, nothing else is converted."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        choices = [a for a in args if a is not type(None)]
        mappings = [a for a in choices if typing.get_origin(a) is dict and isinstance(value, Mapping)]
        return _convert((mappings or choices)[0], value, key)
    if origin is typing.Literal:
        if any(value is option or (value == option and type(value) is type(option)) for option in args):
            return value
        options = [str(option).lower() if isinstance(option, bool) else str(option) for option in args]
        raise UserError("Not one of the choices.", key=key, value=value, remedy=f"One of {', '.join(options)}.")
    if origin is list and isinstance(value, list):
        return [_convert(args[0], item, f"{key}[{i}]") for i, item in enumerate(value)]
    if origin is dict and isinstance(value, Mapping):
        return {_convert(args[0], k, key): _convert(args[1], v, _join(key, str(k))) for k, v in value.items()}
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, key)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    name = getattr(origin or hint, "__name__", str(hint))
    raise UserError(
        "The value has the wrong type.", key=key, value=value, remedy=f"A value of type {name} is expected."
    )
