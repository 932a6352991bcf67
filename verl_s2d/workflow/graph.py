"""Define the build graph: a node is a stage together with everything that determines its result."""

from __future__ import annotations

import hashlib
import heapq
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verl_s2d.workflow.identity import External

if TYPE_CHECKING:
    from verl_s2d.workflow.stage import Stage

MATCHED = "matched"
"""Role of an input that only sets a stopping budget: its ledger is read, its outputs are not."""


def canonical_json(value: Any) -> str:
    """Serialise to JSON so that equal values give equal text: keys sorted, no spaces, no NaN.

    Raises:
        TypeError, ValueError: a value that JSON cannot represent.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


@dataclass(frozen=True, eq=False)
class Node:
    """A stage with its settings and inputs.

    Attributes:
        stage: the kind of stage; its kind and semantics are part of the digest.
        name: shown to users; not part of the digest.
        settings: JSON-able; everything besides the inputs that determines the result. Part of the digest.
        operations: JSON-able; settings without influence on the result (save frequency, worker counts).
        inputs: role -> the node whose output is read.
        externals: role -> the model or file read from outside the graph.
    """

    stage: Stage
    name: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, Node] = field(default_factory=dict)
    externals: Mapping[str, External] = field(default_factory=dict)
    operations: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        return self.stage.kind

    @property
    def sources(self) -> Mapping[str, Node | External]:
        """Map role -> input, from the graph or from outside."""
        return {**self.externals, **self.inputs}

    @cached_property
    def digest(self) -> str:
        """Compute the sha256 over kind, semantics, settings, input digests and external identities."""
        # Inputs first: recursion along a long chain would exhaust Python's stack.
        waiting: list[Node] = list(self.inputs.values())
        while waiting:
            below = [n for n in waiting[-1].inputs.values() if "digest" not in n.__dict__]
            if below:
                waiting += below
            else:
                _ = waiting.pop().digest
        text = canonical_json(
            {
                "kind": self.kind,
                "semantics": self.stage.semantics,
                "settings": self.settings,
                "inputs": {role: node.digest for role, node in self.inputs.items()},
                "externals": {role: external.identity for role, external in self.externals.items()},
            }
        )
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def label(self) -> str:
        """Return the name of the stage's directory."""
        return stage_label(self.kind, self.digest)

    def __repr__(self) -> str:
        return f"Node({self.name}, {self.label})"


def stage_label(kind: str, digest: str) -> str:
    """Return `kind-digest[:12]`."""
    return f"{kind}-{digest[:12]}"


def stage_dir(run_dir: Path, node: Node) -> Path:
    """Locate the directory of a node's output."""
    return run_dir / "stages" / node.label


def ancestors(node: Node) -> list[Node]:
    """List the node and everything it is built from, each digest once, inputs before users."""
    return list(_collect([node]).values())


def lineage(node: Node) -> list[Node]:
    """List all stages that this model was trained from, without inputs that only set a stopping budget."""
    return list(_collect([node], leave_out=MATCHED).values())


def _collect(targets: Iterable[Node], leave_out: str | None = None) -> dict[str, Node]:
    """Map digest -> node for everything the targets are built from, inputs before users. Visits every node once."""
    found: dict[str, Node] = {}
    for target in targets:
        waiting = [(target, False)]
        while waiting:
            node, inputs_done = waiting.pop()
            if node.digest in found:
                continue
            if inputs_done:
                found[node.digest] = node
                continue
            waiting.append((node, True))
            waiting += [(node.inputs[role], False) for role in sorted(node.inputs, reverse=True) if role != leave_out]
    return found


def build_order(targets: Iterable[Node]) -> list[Node]:
    """List all nodes that `targets` need, each digest once.

    Inputs come before users and preparation before training; otherwise the order is that of the targets.
    """
    nodes = _collect(targets)
    rank = {digest: (not node.stage.prepares, i) for i, (digest, node) in enumerate(nodes.items())}
    needs = {digest: {n.digest for n in node.inputs.values()} for digest, node in nodes.items()}
    users: dict[str, list[str]] = {digest: [] for digest in nodes}
    for digest, sources in needs.items():
        for source in sources:
            users[source].append(digest)
    ready = [(rank[d], d) for d, sources in needs.items() if not sources]
    heapq.heapify(ready)
    order = []
    while ready:
        _, digest = heapq.heappop(ready)
        order.append(nodes[digest])
        for user in users[digest]:
            needs[user].discard(digest)
            if not needs[user]:
                heapq.heappush(ready, (rank[user], user))
    return order


def users_of(targets: Sequence[Node]) -> dict[str, list[int]]:
    """Map digest -> positions (ascending) of the targets that are built from that node."""
    # One integer per node, one bit per target, passed from users to inputs: every edge is visited once.
    bits: dict[str, int] = defaultdict(int)
    for i, target in enumerate(targets):
        bits[target.digest] |= 1 << i
    for node in reversed(_collect(targets).values()):
        for source in node.inputs.values():
            bits[source.digest] |= bits[node.digest]
    return {digest: list(_positions(mask)) for digest, mask in bits.items()}


def _positions(mask: int) -> Iterator[int]:
    """List the positions of the bits that are set, ascending."""
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest
