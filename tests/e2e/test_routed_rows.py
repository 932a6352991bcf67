"""The rows of several data sources by one command, at minimum size in real verl, vLLM and Ray: MOPD and CoPD."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from tests.support.minimal_recipe import write_minimal_recipe
from tests.support.tiny import write_problems
from verl_s2d.metrics.metric_logs import read_metrics

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def write_sources(path, first: int, count: int):
    """Problems of two data sources, `low` and `high`."""
    rows = pq.read_table(write_problems(path, first + count)).to_pylist()[first:]
    for number, row in enumerate(rows):
        row["data_source"] = ("low", "high")[number % 2]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


@pytest.mark.timeout(3600)
def test_mopd_and_copd_by_one_command(tmp_path):
    train = write_sources(tmp_path / "train.parquet", 0, 32)
    held_out = write_sources(tmp_path / "eval.parquet", 32, 8)
    recipe = write_minimal_recipe(
        tmp_path,
        name="routed",
        data={"train": train, "eval": {"eval": held_out}, "prompt_tokens": 8, "response_tokens": 6},
        models={
            "low": {"script": "model.py", "args": {"layers": 3, "seed": 5}, "serves": ["low"]},
            "high": {"script": "model.py", "args": {"layers": 3, "seed": 6}, "serves": ["high"]},
        },
        copd={"rounds": 2, "rl_steps": 2, "opd_steps": 1},
        rows=["mopd", "copd"],
    )
    run_dir = tmp_path / "run"
    command = [sys.executable, "-m", "verl_s2d.cli", "run", str(recipe), "--run-dir", str(run_dir)]
    began = time.monotonic()
    subprocess.run(command, check=True, stdout=sys.stderr, timeout=3500)
    seconds = time.monotonic() - began

    manifests = {path.parent: json.loads(path.read_text()) for path in run_dir.glob("stages/*/manifest.json")}
    places = {manifest["name"]: directory for directory, manifest in manifests.items()}
    kinds = Counter(manifest["kind"] for manifest in manifests.values())
    # mopd: a teacher and a cache for each source; copd: two branches in two rounds.
    assert kinds["grpo"] == 2 + 4 and kinds["opd"] == 1 + 4 and kinds["rollouts"] == 2
    for step in read_metrics(places["opd-all-mopd"]).values():
        assert {step["s2d/low/rows"] + step["s2d/high/rows"]} == {16}
        assert step["s2d/low/rows"] and step["s2d/high/rows"]

    def weights(name: str) -> dict[str, torch.Tensor]:
        files = (places[name] / "model").glob("*.safetensors")
        return {key: value for file in files for key, value in load_file(file).items()}

    branches = [weights("opd-all@high-low-2"), weights("opd-all@low-high-2")]
    for key, value in weights("average-copd").items():
        mean = (branches[0][key].double() + branches[1][key].double()) / 2
        assert torch.equal(value, mean.to(value.dtype)), key
    ledgers = {row["name"]: row["ledger"] for row in json.loads((run_dir / "report.json").read_text())["rows"]}
    # The union of the branches' labels, which are those of all problems that were drawn.
    assert 16 <= ledgers["copd"]["labels_read"] <= 32
    for row, ledger in ledgers.items():
        print(row, {key: value for key, value in ledger.items() if value})
    print(f"{len(manifests)} stages {dict(kinds)}, {seconds:.0f} s")
