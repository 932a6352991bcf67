"""`verl-s2d verify`: every artefact of a run tree, each kind of damage, and nothing said about a whole one."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.support.workflow.damage import DAMAGES, truncate
from tests.support.workflow.runs import checkpoint, directory, project, simulate
from verl_s2d import cli
from verl_s2d.errors import UserError
from verl_s2d.workflow.store.digests import output_files
from verl_s2d.workflow.store.manifest import MANIFEST
from verl_s2d.workflow.store.verify import verify_run


@pytest.fixture(autouse=True)
def _no_real_cluster(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.delenv("FAKE", raising=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run; tests that harm it take a copy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "127.0.0.1:1")
        base = tmp_path_factory.mktemp("finished")
        plan = project(base)
        assert simulate(plan) == []
    return plan


def copy(plan, tmp_path):
    return shutil.copytree(plan.context.run_dir, tmp_path / "run")


def test_a_whole_run_is_whole_wherever_it_is(finished, tmp_path):
    for run_dir in (finished.context.run_dir, copy(finished, tmp_path)):
        verification = verify_run(run_dir)
        assert verification.ok and verification.findings == []
        assert (verification.finished, verification.unfinished) == (len(finished.order), 0)
        assert verification.bytes_read > 0


@pytest.mark.parametrize("harm", DAMAGES)
def test_every_output_of_every_stage_is_looked_at(finished, tmp_path, harm):
    run_dir = copy(finished, tmp_path)
    harmed = set()
    for node in finished.order:
        for path in output_files(run_dir / "stages" / node.label):
            harm(path)
            harmed.add(path.relative_to(run_dir).as_posix())
    found = verify_run(run_dir).findings
    assert {finding.path for finding in found} == harmed and all(finding.bad for finding in found)


def test_manifests_records_and_reports(finished, tmp_path):
    run_dir = copy(finished, tmp_path)
    first, second = (run_dir / "stages" / node.label for node in finished.order[:2])
    truncate(first / MANIFEST)
    shutil.copy(first / MANIFEST, second / "old.json")
    truncate(run_dir / "run.json")
    (run_dir / "report.json").write_text("{")
    bad = {finding.path for finding in verify_run(run_dir).findings if finding.bad}
    assert bad == {f"stages/{first.name}/{MANIFEST}", "run.json", "report.json"}
    notes = {finding.path: finding.what for finding in verify_run(run_dir).findings if not finding.bad}
    assert "not written by the stage" in notes[f"stages/{second.name}/old.json"]


def test_a_manifest_of_another_stage_is_found(finished, tmp_path):
    run_dir = copy(finished, tmp_path)
    first, second = (run_dir / "stages" / node.label for node in finished.order[:2])
    shutil.copy(first / MANIFEST, second / MANIFEST)
    (finding,) = (f for f in verify_run(run_dir).findings if f.bad)
    assert f"belongs to {first.name}" in finding.what


def test_an_input_that_is_gone_is_told(finished, tmp_path):
    run_dir = copy(finished, tmp_path)
    shutil.rmtree(run_dir / "stages" / finished.order[0].label)
    verification = verify_run(run_dir)
    assert verification.ok and any("is gone" in finding.what for finding in verification.findings)


def test_the_checkpoint_of_an_unfinished_stage_is_checked(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE", json.dumps({"grpo": "crash@3"}))
    plan = project(tmp_path, rows=["direct-grpo"])
    simulate(plan)
    shard = checkpoint(
        directory(plan, "student-rl-all") / "checkpoints/global_step_2/actor/model_world_size_1_rank_0.pt"
    )
    verification = verify_run(plan.context.run_dir)
    assert verification.ok and verification.unfinished == 1
    assert any("would go on from step 2" in finding.what for finding in verification.findings)
    truncate(shard)
    (finding,) = (f for f in verify_run(plan.context.run_dir).findings if f.bad)
    assert finding.path.endswith("model_world_size_1_rank_0.pt") and "cut short" in finding.what


def test_exit_codes_and_json(finished, tmp_path, capsys):
    run_dir = copy(finished, tmp_path)
    assert cli.main(["verify", str(run_dir)]) == 0
    assert "nothing is damaged" in capsys.readouterr().out
    truncate(run_dir / "stages" / finished.order[-1].label / "result.json")
    assert cli.main(["verify", str(run_dir)]) == 1
    out = capsys.readouterr().out
    assert "DAMAGED" in out and "result.json" in out and "verl-s2d run" in out
    assert cli.main(["verify", str(run_dir), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["findings"][0]["bad"]
    assert cli.main(["verify", str(tmp_path)]) == 2
    with pytest.raises(UserError, match="not the directory of a run"):
        verify_run(tmp_path)
