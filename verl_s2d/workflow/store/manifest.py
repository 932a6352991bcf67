"""Read and write manifests. A manifest makes a stage done: it is written last, after the output has been verified."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verl_s2d import redaction
from verl_s2d.data.files import write_json
from verl_s2d.platforms.provenance import installed_versions
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.ledger import Ledger
from verl_s2d.workflow.store.digests import describe_outputs

MANIFEST = "manifest.json"
_REQUIRED = {"kind", "name", "digest", "inputs", "ledger", "seconds", "attempts", "outputs"}


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """Read the manifest of a stage directory; None if there is none or it is damaged."""
    return inspect_manifest(directory)[0]


def inspect_manifest(directory: Path) -> tuple[dict[str, Any] | None, str | None]:
    """Return (manifest, None), (None, what is wrong with it), or (None, None) when there is none."""
    try:
        text = (directory / MANIFEST).read_bytes()
    except FileNotFoundError:
        return None, None
    except OSError as error:
        return None, f"cannot be read: {error.strerror or error}"
    try:
        manifest = json.loads(text)
    except ValueError:
        return None, "is not JSON: it was cut short or overwritten"
    if not isinstance(manifest, dict) or not manifest.keys() >= _REQUIRED:
        return None, "is not the manifest of a stage"
    return manifest, None


def is_built(node: Node, directory: Path) -> bool:
    """Report whether the directory holds the finished result of this node's digest."""
    manifest = read_manifest(directory)
    return manifest is not None and manifest["digest"] == node.digest


def write_manifest(
    node: Node,
    directory: Path,
    *,
    ledger: Ledger,
    seconds: float,
    attempts: int,
    machine: Mapping[str, Any] | None = None,
    end: Mapping[str, Any] | None = None,
) -> None:
    """Record a verified stage.

    Args:
        machine: platforms.provenance.describe_machine.
        end: Stage.end, why it ended before its last step.
    """
    manifest = {
        "kind": node.kind,
        "name": node.name,
        "digest": node.digest,
        "semantics": node.stage.semantics,
        "settings": node.settings,
        "operations": node.operations,
        "inputs": {role: {"kind": n.kind, "digest": n.digest} for role, n in node.inputs.items()},
        "externals": {role: {"location": e.location, "identity": e.identity} for role, e in node.externals.items()},
        "ledger": ledger,
        "seconds": round(seconds, 3),
        "attempts": attempts,
        **(end or {}),
        "outputs": describe_outputs(directory),
        "versions": installed_versions(),
        "machine": machine or {},
    }
    write_json(redaction.current().data(manifest), directory / MANIFEST)
