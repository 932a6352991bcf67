"""gpu-check's parts that need minutes, for real at their tiny size: also the short run of each kind of stage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from verl_s2d import cli

pytestmark = pytest.mark.e2e


def checked(tmp_path: Path, *parts: str) -> dict[str, dict]:
    """Run these parts, which must pass; name of a check -> the check."""
    out = tmp_path / "report.json"
    words = ["gpu-check", "--device", "cpu", "--parts", ",".join(parts), "--out", str(out)]
    code = cli.main([*words, "--keep", str(tmp_path / "kept")])
    found = [check for part in json.loads(out.read_text())["parts"] for check in part["checks"]]
    assert ([check for check in found if check["state"] == "failed"], code) == ([], 0)
    return {check["name"]: check for check in found}


def test_products_divergence_and_sampler(tmp_path):
    found = checked(tmp_path, "gemms", "divergence", "vllm", "summary")
    for objective in ("forward_kl", "reverse_kl", "jsd"):
        assert found[f"{objective}: compiled against eager"]["state"] == "ok"
    assert found["a row of NaN"]["state"] == found["stop ids"]["state"] == "ok"
    assert found["processes after a kill -9"]["figure"] == "none"
    assert found["equal samples, same seeds again"]["value"] == 1.0, "in float32 on one machine"
    # One id has a row in the embedding and no token.
    assert found["largest id"]["limit"] == "<= 24"


def test_engines(tmp_path):
    found = checked(tmp_path, "engines")
    for case in ("untied", "LoRA", "tied", "untied, bf16"):
        for stage in ("2a", "2b"):
            for what in ("loss", "gradient", "update"):
                assert found[f"{stage} {case}: {what}"]["state"] == "ok"
    assert found["2b untied, bf16: gradient"]["value"] > 1e-4, "bf16 was really used"
    assert found["actor and reference, one model: p99.9 of |log-prob difference|"]["state"] == "ok"


@pytest.mark.timeout(1800)
def test_every_kind_of_stage_a_kill_and_a_resume(tmp_path):
    found = checked(tmp_path, "stages")
    for kind in ("grpo", "rollouts", "warmup", "opd", "evaluate"):
        assert found[f"{kind}: built"]["state"] == "ok"
    assert found["attempts at 2b"]["figure"] == "2"
    assert found["first step of the resumed 2b"]["state"] == "ok"
    assert found["tokens in the ledger of 2b"]["state"] == "ok"
    assert found["check: rollout and training engine"]["state"] == "ok"
