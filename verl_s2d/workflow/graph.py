"""The build graph: a node is a stage together with everything that determines its result."""

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
"""Role of an input whose ledger says when to stop, and which is otherwise not read."""


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
        stage: what it is an instance of; its kind and semantics are part of the digest.
        name: for humans; not part of the digest.
        settings: JSON-able; everything that determines the result besides the inputs. Part of the digest.
        operations: JSON-able; how the work is done, without influence on the result (save frequency, worker counts).
        inputs: role -> the node whose output is read.
        externals: role -> what is read from outside the graph.
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
        """Role -> what is read in it, from the graph or from outside."""
        return {**self.externals, **self.inputs}

    @cached_property
    def digest(self) -> str:
        """sha256 over kind, semantics, settings, input digests and external identities."""
        # What it is built from first: in a long chain each digest would otherwise wait for the next on Python's stack.
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
        """The name of its directory."""
        return stage_label(self.kind, self.digest)

    def __repr__(self) -> str:
        return f"Node({self.name}, {self.label})"


def stage_label(kind: str, digest: str) -> str:
    """`kind-digest[:12]`."""
    return f"{kind}-{digest[:12]}"


def stage_dir(run_dir: Path, node: Node) -> Path:
    """Where the output of a node lives."""
    return run_dir / "stages" / node.label


def ancestors(node: Node) -> list[Node]:
    """The node and all that has to be there before it, each digest once, inputs before users."""
    return list(_collect([node]).values())


def lineage(node: Node) -> list[Node]:
    """Ancestors without those that say no more than when to stop: what its model is made of."""
    return list(_collect([node], leave_out=MATCHED).values())


def _collect(targets: Iterable[Node], leave_out: str | None = None) -> dict[str, Node]:
    """digest -> node of all that the targets are built from, inputs before users. Visits every node once."""
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
    """All nodes that `targets` need, each digest once: inputs before users, preparation before training, and
    otherwise in the order in which the targets ask for them."""
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
    """digest -> which of the targets (their positions, ascending) are built from that node."""
    # One integer a node, a bit a target: handed down from users to inputs, every edge is looked at once.
    bits: dict[str, int] = defaultdict(int)
    for i, target in enumerate(targets):
        bits[target.digest] |= 1 << i
    for node in reversed(_collect(targets).values()):
        for source in node.inputs.values():
            bits[source.digest] |= bits[node.digest]
    return {digest: list(_positions(mask)) for digest, mask in bits.items()}


def _positions(mask: int) -> Iterator[int]:
    """Positions of the bits that are set, ascending."""
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest
