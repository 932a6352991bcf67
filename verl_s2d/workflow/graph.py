"""The build graph: a node is a stage together with everything that determines its result."""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from verl_s2d.workflow.identity import External

PREPARATION_KINDS = ("script", "slices")
"""Cheap kinds, built first, so that what they make can be checked before anything is trained."""


def canonical_json(value: Any) -> str:
    """One text for one meaning: keys sorted, no spaces, no NaN.

    Raises:
        TypeError, ValueError: something that JSON cannot say.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


@dataclass(frozen=True, eq=False)
class Node:
    """One stage.

    Attributes:
        kind: what sort of stage, a key of `stages.KINDS`.
        name: for humans; not part of the digest.
        settings: JSON-able; everything that determines the result besides the inputs. Part of the digest.
        operations: JSON-able; how the work is done, without influence on the result (save frequency, worker counts).
        inputs: role -> the node whose output is read.
        externals: role -> what is read from outside the graph.
        semantics: raised by hand when the meaning of the kind changes.
    """

    kind: str
    name: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, Node] = field(default_factory=dict)
    externals: Mapping[str, External] = field(default_factory=dict)
    operations: Mapping[str, Any] = field(default_factory=dict)
    semantics: int = 1

    @cached_property
    def digest(self) -> str:
        """sha256 over kind, semantics, settings, input digests and external identities."""
        text = canonical_json(
            {
                "kind": self.kind,
                "semantics": self.semantics,
                "settings": self.settings,
                "inputs": {role: node.digest for role, node in self.inputs.items()},
                "externals": {role: external.identity for role, external in self.externals.items()},
            }
        )
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def label(self) -> str:
        """`kind-digest[:12]`, the name of its directory."""
        return f"{self.kind}-{self.digest[:12]}"

    def __repr__(self) -> str:
        return f"Node({self.name}, {self.label})"


def stage_dir(run_dir: Path, node: Node) -> Path:
    """Where the output of a node lives."""
    return run_dir / "stages" / node.label


def ancestors(node: Node) -> list[Node]:
    """The node and all it is built from, each digest once, inputs before users."""
    found: dict[str, Node] = {}

    def visit(current: Node) -> None:
        if current.digest in found:
            return
        for role in sorted(current.inputs):
            visit(current.inputs[role])
        found[current.digest] = current

    visit(node)
    return list(found.values())


def build_order(targets: Iterable[Node]) -> list[Node]:
    """All nodes that `targets` need, each digest once: inputs before users, preparation before training, and
    otherwise in the order in which the targets ask for them."""
    nodes: dict[str, Node] = {}
    for target in targets:
        for node in ancestors(target):
            nodes.setdefault(node.digest, node)
    rank = {digest: (node.kind not in PREPARATION_KINDS, i) for i, (digest, node) in enumerate(nodes.items())}
    missing = {digest: {n.digest for n in node.inputs.values()} for digest, node in nodes.items()}
    ready = [(rank[d], d) for d, needs in missing.items() if not needs]
    heapq.heapify(ready)
    order = []
    while ready:
        _, digest = heapq.heappop(ready)
        order.append(nodes[digest])
        for other, needs in missing.items():
            if digest in needs:
                needs.discard(digest)
                if not needs:
                    heapq.heappush(ready, (rank[other], other))
    return order
