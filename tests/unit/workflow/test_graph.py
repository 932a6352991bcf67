"""Digests, order and directories of the build graph."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_s2d.stages import stages
from verl_s2d.stages.grpo.stage import Grpo
from verl_s2d.stages.opd.stage import Opd
from verl_s2d.stages.prepare.stage import Script
from verl_s2d.workflow.graph import Node, ancestors, build_order, canonical_json, stage_dir
from verl_s2d.workflow.identity import External, directory_digest, file_digest

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5)
)
values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=3), v, max_size=3), max_leaves=6
)
mappings = st.dictionaries(st.text(max_size=4), values, max_size=5)


class Later(Grpo):
    """The same kind with another meaning."""

    semantics = 2


class LaterScript(Script):
    semantics = 2


def node(settings=None, kind="grpo", inputs=None, **more) -> Node:
    return Node(stages()[kind], more.pop("name", "n"), settings or {}, inputs or {}, **more)


@given(mappings, st.randoms())
def test_digest_does_not_depend_on_the_order_of_keys(mapping, random):
    keys = list(mapping)
    random.shuffle(keys)
    assert node(mapping).digest == node({k: mapping[k] for k in keys}).digest


@given(mappings, mappings)
def test_digest_changes_with_settings_and_only_then(a, b):
    assert (node(a).digest == node(b).digest) == (canonical_json(a) == canonical_json(b))


@given(mappings)
def test_digest_depends_on_kind_semantics_inputs_and_externals(mapping):
    base = node(mapping)
    other = node({"x": 1}, kind="script")
    variants = [
        replace(base, stage=Opd()),
        replace(base, stage=Later()),
        replace(base, inputs={"model": other}),
        replace(base, inputs={"teacher": other}),
        replace(base, inputs={"model": replace(other, stage=LaterScript())}),
        replace(base, externals={"model": External("m", "a")}),
        replace(base, externals={"model": External("m", "b")}),
    ]
    assert len({n.digest for n in [base, *variants]}) == len(variants) + 1


def test_name_operations_and_location_do_not_count():
    base = node({"a": 1}, externals={"model": External("/here", "same")})
    moved = replace(base, name="other", operations={"save_every": 5}, externals={"model": External("/there", "same")})
    assert moved.digest == base.digest


@st.composite
def graphs(draw):
    """A random acyclic graph: node i reads some of the nodes before it."""
    nodes: list[Node] = []
    for i in range(draw(st.integers(1, 9))):
        chosen = draw(st.lists(st.integers(0, i - 1), max_size=3, unique=True)) if i else []
        kind = draw(st.sampled_from(["script", "slices", "grpo", "evaluate"]))
        nodes.append(node({"i": draw(st.integers(0, 4))}, kind, {f"r{j}": nodes[j] for j in chosen}))
    return nodes


@settings(max_examples=60)
@given(graphs())
def test_build_order_is_topological_and_has_every_digest_once(nodes):
    order = [n.digest for n in build_order(nodes)]
    assert len(order) == len(set(order)) and set(order) == {n.digest for n in nodes}
    for n in nodes:
        assert all(order.index(source.digest) < order.index(n.digest) for source in n.inputs.values())


@given(graphs())
def test_ancestors_are_what_a_node_is_built_from(nodes):
    found = [n.digest for n in ancestors(nodes[-1])]
    assert found[-1] == nodes[-1].digest and set(found) <= {n.digest for n in nodes}


def test_preparation_comes_first():
    script, late = node(kind="script"), node({"late": 1}, kind="slices")
    training = node(inputs={"model": script})
    assert [n.kind for n in build_order([training, late])] == ["script", "slices", "grpo"]


def test_stage_directory_is_kind_and_digest():
    n = node()
    assert stage_dir(Path("run"), n) == Path("run/stages") / f"grpo-{n.digest[:12]}"


def test_nan_has_no_digest():
    with pytest.raises(ValueError):
        _ = node({"lr": float("nan")}).digest


def test_directory_identity_is_content_not_place(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "x").write_text("same")
        (tmp_path / name / ".cache").write_text(name)
    assert directory_digest(tmp_path / "a") == directory_digest(tmp_path / "b")
    (tmp_path / "b" / "sub" / "x").rename(tmp_path / "b" / "sub" / "y")
    assert directory_digest(tmp_path / "a") != directory_digest(tmp_path / "b")


@pytest.mark.parametrize("position", [0, 10 * 2**20, 70 * 2**20 - 1])
def test_large_files_are_sampled_at_head_tail_and_between(tmp_path, position):
    file = tmp_path / "big"
    with file.open("wb") as stream:
        stream.truncate(70 * 2**20)
    before = file_digest(file)
    with file.open("r+b") as stream:
        stream.seek(position)
        stream.write(b"x")
    assert file_digest(file) != before
