"""Name a frozen model: the checkpoint behind a role of a signal, and where it is evaluated."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from verl_s2d.recipe.servers import Servers
from verl_s2d.validation import Refused, Section

Sources = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(lambda given: _tuple(given))]


def _tuple(given: Any) -> Any:
    return tuple(given) if isinstance(given, list) else given


class FrozenModel(Section):
    """A checkpoint that is evaluated and never trained. Equal ones share an engine, whatever their roles.

    Attributes:
        path: directory or hub id.
        revision: revision of a hub id; null: its main branch.
        trust_remote_code: run code from the checkpoint.
        placement: `colocated`, one of verl's forward-only engines in the student's workers; or `server`, vLLM servers
            of its own, on GPUs beside the student's, for a model that does not fit beside the student.
        server: the servers' settings; null for the defaults.
        serves: data sources of the problems that it is asked about; empty for a model that is asked about all. Models
            that serve some play the role of the teacher together (teachers/router.py).
    """

    path: Annotated[str, Field(min_length=1)]
    revision: str | None = None
    trust_remote_code: bool = False
    placement: Literal["colocated", "server"] = "colocated"
    server: Servers | None = None
    serves: Sources = ()

    @property
    def checkpoint(self) -> FrozenModel:
        """The model without what it serves: what an engine holds."""
        return self.model_copy(update={"serves": ()})

    @property
    def servers(self) -> Servers | None:
        """Return the settings of the model's servers, None for a colocated model."""
        return None if self.placement == "colocated" else self.server or Servers()

    @model_validator(mode="after")
    def _what_servers_take(self) -> FrozenModel:
        if self.placement == "colocated":
            if self.server is not None:
                raise Refused(
                    "A colocated model has no servers, so this has no effect.",
                    key="server",
                    value=self.server.model_dump(exclude_unset=True),
                    remedy="Set placement: server, or leave this out.",
                )
            return self
        for key, value in (("revision", self.revision), ("trust_remote_code", self.trust_remote_code or None)):
            if value is not None:
                raise Refused(
                    "verl's teacher servers load a model by its path alone.",
                    key=key,
                    value=value,
                    remedy="Download the model and give its directory; a model with code of its own has to be "
                    "colocated.",
                )
        return self

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        absent = {name for name in ("server", "serves") if not getattr(self, name)}
        return {name: value for name, value in handler(self).items() if name not in absent}
