"""Make what the stages of a row read: models, files, slices of the labels, the verifier."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from verl_s2d.data.label_split import HALF
from verl_s2d.data.pool_key import PROMPTS
from verl_s2d.errors import UserError
from verl_s2d.recipe.schema import Recipe
from verl_s2d.recipe.source import DataScript, ModelSource
from verl_s2d.stages.prepare.overlong import DROP, REFUSE
from verl_s2d.stages.prepare.prompt_pool import LABELLED, PromptPool
from verl_s2d.stages.prepare.stage import (
    POOL,
    SOURCES,
    SPLIT,
    Script,
    Slices,
    labelled_part,
    parts_of,
    slice_sizes,
)
from verl_s2d.stages.problem_inputs import ProblemInputs, column_names
from verl_s2d.stages.shared.node_settings import VERIFIER
from verl_s2d.verifiers.registry import Named, by_data_source
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.identity import External, files_external, model_external
from verl_s2d.workflow.stage import Stage

Model = Node | External


class RowInputs:
    """Makes the inputs of one row's nodes. Identities of files are computed once and shared through `externals`."""

    def __init__(
        self,
        recipe: Recipe,
        row: str,
        seed: int,
        device: str,
        externals: dict[Any, External],
        *,
        several_seeds: bool = False,
    ):
        self.recipe, self.row, self.seed, self.device = recipe, row, seed, device
        self._externals, self._several_seeds = externals, several_seeds
        self._problems = ProblemInputs(recipe, self._file, self._source, self._pool_script, self._model, self.node)

    def model(self, role: str) -> Model:
        """Return the recipe's model of a role, or the stage whose script makes it.

        Raises:
            UserError: the recipe has none, or it cannot be read.
        """
        source = self.recipe.models.get(role)
        if source is None:
            remedy = f"Add `{role}:` under `models:`, or leave the row out."
            raise UserError(f"A model required by row {self.row} is missing.", key=f"models.{role}", remedy=remedy)
        return self._model(source, role)

    @property
    def serving(self) -> Mapping[str, tuple[str, ...]]:
        """Map role -> data sources that its model serves."""
        return self.recipe.serving

    def slices(self, slice_name: str = "all", *, key: str = "rows", value: Any = None) -> Node:
        """Build the slices of the labels, or of those from the data sources that the slice's name has.

        Args:
            key, value: of the setting that reads them, for messages; by default the row.

        Raises:
            UserError: the slice has prompts without labels.
        """
        data, (part, sources) = self.recipe.data, parts_of(slice_name)
        if labelled_part(part) != part:
            raise UserError(
                f"In row {self.row} this reads labels, and slice {slice_name} has prompts without labels.",
                key=key,
                value=self.row if value is None else value,
                remedy=f"Leave it out, or read a slice of labelled problems, such as {labelled_part(part) or 'all'}.",
            )
        inputs, limited = self._problems.of("train"), data.overlong_prompts != REFUSE
        if data.validation is not None and not limited and not self._as_verl("data.validation", data.validation):
            inputs["validation"] = self._file("data.validation", data.validation)
        settings = {"labels": data.labels, "seed": self.seed, **self._columns()}
        if sources:
            settings[SOURCES] = list(sources)
        if data.split != HALF:
            settings[SPLIT] = data.split
        return self.node(Slices(), stage_name("slices", ",".join(sources), ""), settings, **inputs)

    def prompts(self, slice_name: str, pool: Node | None = None) -> Node:
        """Build the slice of prompts that stages read without answers: of labelled problems, of the pool, or both.

        Args:
            pool: a stage that makes the prompts without labels; None for the recipe's. Its overlong ones are dropped.
        """
        part, sources = parts_of(slice_name)
        labelled = labelled_part(part)
        if labelled == part:
            return self.slices(slice_name)
        inputs, settings = ({POOL: pool}, {}) if pool else (self._problems.pool(), column_names(self.recipe))
        if sources:
            settings[SOURCES] = list(sources)
        policy = self.recipe.data.overlong_prompts
        if pool is not None or policy != REFUSE:
            limit, tokenizers = self._problems.limit(DROP if policy == REFUSE else policy)
            settings, inputs = settings | limit, inputs | tokenizers
        if labelled:
            settings[LABELLED] = labelled
            inputs["slices"] = self.slices(f"{labelled}@{','.join(sources)}" if sources else labelled)
        seeded = any(isinstance(source, Node) for source in inputs.values())
        name = stage_name("slices", slice_name, pool.name.partition(" ")[0] if pool else "")
        return self.node(PromptPool(), name, settings, seeded=seeded, **inputs)

    def slice_sizes(self) -> dict[str, int]:
        """Map slice name -> number of problems, from the recipe and its files alone.

        Raises:
            UserError: the number of training problems is known only after a stage has run, and the recipe gives none.
        """
        data = self.recipe.data
        if data.labels is not None:
            return slice_sizes(data.labels, data.split)
        if data.train is None or data.overlong_prompts == DROP:
            raise UserError(
                "Matching rows by labels needs their number in advance.",
                key="data.labels",
                value=None,
                remedy="Set it to the number of labelled problems to use.",
            )
        from verl_s2d.data.formats.data_files import row_count

        return slice_sizes(row_count(self.recipe.directory / data.train, key="data.train"), data.split)

    def node(
        self,
        stage: Stage,
        name: str,
        settings: Mapping[str, Any],
        operations: Mapping[str, Any] | None = None,
        /,
        seeded: bool = True,
        **inputs: Any,
    ) -> Node:
        """Build the node of a stage, which may be one of a recipe's own.

        Args:
            name: shown to users, unique within the row.
            settings, operations: as in Node.
            seeded: the result depends on the row's seed.
            inputs: role -> node or external.
        """
        several = self._several_seeds and seeded
        return Node(
            stage=stage,
            name=f"{name} (seed {self.seed})" if several else name,
            settings=settings,
            operations=operations or {},
            inputs={role: x for role, x in inputs.items() if isinstance(x, Node)},
            externals={role: x for role, x in inputs.items() if isinstance(x, External)},
        )

    def _columns(self) -> dict[str, dict[str, str]]:
        """Return the setting of the columns' names; none where a stage has read the files before."""
        return column_names(self.recipe) if self.recipe.data.overlong_prompts == REFUSE else {}

    def _as_verl(self, key: str, name: str) -> bool:
        """Tell whether verl reads a data file itself, and not what the slices make of it."""
        from verl_s2d.data.formats.data_files import read_any
        from verl_s2d.data.formats.verl_columns import is_verl

        if self.recipe.data.columns is not None:
            return False
        path = self.recipe.directory / name
        return self._once((key, "verl"), lambda: path.suffix == ".parquet" and is_verl(read_any(path, key=key)))

    def _sizes_of(self, sources: Sequence[str]) -> dict[str, int]:
        """Map slice name -> number of its problems from these data sources, as far as no prompt is dropped."""
        from verl_s2d.data.problems import read_problems
        from verl_s2d.data.slices import slices_of

        data = self.recipe.data
        path = self.recipe.directory / data.train
        problems = self._once(
            ("data.train", "problems"), lambda: read_problems(path, key="data.train", columns=data.columns)
        )
        slices = slices_of(problems, data.labels, self.seed, sources, data.split)
        return {name: len(ids) for name, ids in slices.items()}

    def _pool_size(self, slice_name: str) -> int | None:
        """Count the prompts of a slice with the pool, as far as none is dropped; None before a script has run."""
        from verl_s2d.data.unlabelled import of_sources, read_pool

        data, (part, sources) = self.recipe.data, parts_of(slice_name)
        labelled = labelled_part(part)
        if not isinstance(data.prompts, list) or (labelled and data.train is None and (sources or not data.labels)):
            return None
        paths = [self.recipe.directory / file for file in data.prompts]
        prompts = self._once((PROMPTS, "read"), lambda: [p for f in paths for p in read_pool(f, columns=data.columns)])
        beside = (self._sizes_of(sources) if sources else self.slice_sizes())[labelled] if labelled else 0
        return len(of_sources(prompts, sources)) + beside

    def _verifier(self, settings: dict[str, Any]) -> dict[str, External]:
        """Enter the verifier into `settings`; return the files of the recipe's own functions."""
        files: dict[str, External] = {}
        chosen = by_data_source(self.recipe.verifier)
        if chosen is not None:
            found = {source: self._own_file(one, f"{VERIFIER}.{source}", files) for source, one in chosen.items()}
        else:
            found = self._own_file(self.recipe.verifier, VERIFIER, files)
        settings["verifier"] = found if isinstance(found, str) else json.dumps(found, sort_keys=True)
        return files

    def _own_file(self, verifier: Named, role: str, files: dict[str, External]) -> Named:
        """Enter the file of a recipe's own verifier into `files` and return its function; return any other as it is."""
        file, colon, function = verifier.rpartition(":") if isinstance(verifier, str) else ("", "", "")
        if not colon:
            return verifier
        files[role] = self._file("verifier", file)
        return function

    def _source(self) -> Node:
        return self._script(self.recipe.data.source, "data", "data.source")

    def _pool_script(self) -> Node:
        return self._script(self.recipe.data.prompts, POOL, PROMPTS)

    def _model(self, source: ModelSource, role: str) -> Model:
        if source.script is not None:
            return self._script(source, "model", role, trust_remote_code=source.trust_remote_code)
        directory = self.recipe.directory
        trusted = source.trust_remote_code
        return self._once(
            (role, "model"),
            lambda: model_external(source.model, source.revision, directory, role, trust_remote_code=trusted),
        )

    def _script(
        self, source: DataScript | ModelSource, makes: str, key: str, *, trust_remote_code: bool = False
    ) -> Node:
        args = {name: self.seed if value == "{seed}" else value for name, value in source.args.items()}
        files = [self.recipe.directory / name for name in (source.script, *source.uses)]
        external = self._once((key, "script"), lambda: files_external(files, f"{key}.script", source.script))
        name = POOL if makes == POOL else key.partition(".")[0]
        settings: dict[str, Any] = {"args": args, "makes": makes}
        if trust_remote_code:
            settings["trust_remote_code"] = True
        return self.node(Script(), name, settings, seeded=args != source.args, script=external)

    def _file(self, key: str, name: str) -> External:
        return self._once((key, name), lambda: files_external([self.recipe.directory / name], key, name))

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._externals:
            self._externals[key] = make()
        return self._externals[key]


def stage_name(stage: str, slice_name: str, of: str) -> str:
    """Name a stage by its kind, its slice, and a suffix where both repeat."""
    return "-".join(filter(None, (stage, slice_name, of)))
