"""Record the outcome of loading the plugin in this process."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class PluginStatus:
    """Outcome of loading this plugin.

    Attributes:
        done: what was registered, in order.
        shims: shim name -> "shim" (active), "upstream" (not needed) or "absent".
        error: formatted traceback of the first failure, None if all went well.
    """

    done: list[str] = field(default_factory=list)
    shims: dict[str, str] = field(default_factory=dict)
    error: str | None = None


STATUS = PluginStatus()
