"""Route problems to frozen models by their data source: several teachers, each asked about what it serves.

Multi-teacher OPD as in MiMo-V2-Flash (section 4.4): A = log p_dom(x)(y_t) - log pi_old(y_t), dom(x) the domain of the
problem. A data source that nobody serves is refused, never sent to another teacher.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from verl_s2d.errors import UserError
from verl_s2d.teachers.frozen_model import FrozenModel

TEACHER = "teacher"
"""Role that the routed models play together."""
TEACHER_OF_ROW = "s2d_teacher"
"""Entry of a batch, (rows,): the place of each rollout's teacher among the models of the router."""


@dataclass(frozen=True)
class Router:
    """Maps data source -> role of the model that serves it.

    Attributes:
        models: role -> model, of those that serve a data source, in the order of the settings.
    """

    models: Mapping[str, FrozenModel]

    def role(self, data_source: str) -> str:
        """Name the model that serves a data source.

        Raises:
            UserError: nobody serves it.
        """
        for role, model in self.models.items():
            if data_source in model.serves:
                return role
        raise _unserved([data_source], self.models)

    def groups(self, data_sources: Sequence[str]) -> list[tuple[str, list[int]]]:
        """Group rows by the checkpoint that answers: [(a role of it, rows in order)], without those of no row.

        Args:
            data_sources: of each row.
        """
        found: dict[FrozenModel, tuple[str, list[int]]] = {}
        for role, model in self.models.items():
            found.setdefault(model.checkpoint, (role, []))
        for row, source in enumerate(data_sources):
            found[self.models[self.role(source)].checkpoint][1].append(row)
        return [(role, rows) for role, rows in found.values() if rows]

    def require_all_served(self, data_sources: Iterable[str]) -> None:
        """Raise UserError for a data source that nobody serves, or a model that serves none of these."""
        found = set(data_sources)
        served = {source for model in self.models.values() for source in model.serves}
        if unserved := sorted(found - served):
            raise _unserved(unserved, self.models)
        for role, model in self.models.items():
            if not found & set(model.serves):
                raise UserError(
                    "no problem has a data source of this model, so it would be loaded for nothing",
                    key=f"models.{role}.serves",
                    value=list(model.serves),
                    remedy=f"leave the model out; data sources of the problems: {', '.join(sorted(found))}",
                )


def _unserved(sources: Sequence[str], models: Mapping[str, FrozenModel]) -> UserError:
    served = "; ".join(f"{role}: {', '.join(model.serves)}" for role, model in models.items())
    return UserError(
        "no teacher serves this data source",
        key="data_source",
        value=", ".join(sources),
        remedy=f"add it to `serves` of a model, or leave its problems out; served are {served}",
    )
