"""Secrets of the environment and of recipes are in nothing that the workflow writes or prints."""

from __future__ import annotations

import json
import os

import pytest

from tests.support.workflow.project import FakeStages, write_project
from tests.support.workflow.runs import Lines
from verl_s2d import cli, redaction
from verl_s2d.recipe.load import load_recipe
from verl_s2d.redaction import HIDDEN, Redactor, secret_name, secrets_in
from verl_s2d.stages.planning import make_plan
from verl_s2d.workflow.runner import run_plan
from verl_s2d.workflow.store.manifest import read_manifest

PLANTED = {
    "HF_TOKEN": "hf_PlantedPlantedPlanted01",
    "WANDB_API_KEY": "planted-wandb-0123456789abcdef",
    "OPENAI_API_KEY": "sk-planted-openai-0123456789",
    "AWS_SECRET_ACCESS_KEY": "planted/aws+0123456789abcdef",
    "RAY_AUTH_TOKEN": "planted0ray0token0123456789",
    "GITHUB_PAT": "planted-github-pat-012345",
    "MY_DB_PASSWORD": "planted-password-01",
}
IN_RECIPE = {
    "+trainer.tracking_api_key": "planted-override-0123",
    "+ray_kwargs.ray_init.runtime_env.env_vars.SERVICE_TOKEN": "planted-in-ray-0123",
    "+trainer.proxy": "http://user:planted-proxy-01@proxy.example:3128",
}
PLANTED_IN_RECIPE = ("planted-override-0123", "planted-in-ray-0123", "planted-proxy-01")


@pytest.fixture(autouse=True)
def _planted(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.delenv("FAKE", raising=False)
    monkeypatch.setattr(redaction, "_remembered", set())
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)


SECRET = ["api_key", "OPENAI_API_KEY", "trainer.apiKey", "hf_token", "HF_TOKEN", "db.password", "AWS_SECRET_ACCESS_KEY"]
SECRET += ["access_token", "private_key", "token", "client_secret", "Authorization", "GH_PAT", "aws_session_token"]
HARMLESS = ["eos_token", "pad_token", "max_tokens", "prompt_key", "data.reward_fn_key", "tokenizer", "sampled_tokens"]
HARMLESS += ["PATH", "keep_tokens", "key", "monkey", "secretary", "TOKENIZERS_PARALLELISM", "author", "", "image_key"]


@pytest.mark.parametrize("name", SECRET)
def test_names_of_secrets(name):
    assert secret_name(name)


@pytest.mark.parametrize("name", HARMLESS)
def test_names_that_only_look_alike(name):
    assert not secret_name(name)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("'api_key': 'abcd',", f"'api_key': {HIDDEN},"),
        ("+trainer.api_key=abcd x", f"+trainer.api_key={HIDDEN} x"),
        ("password: hunter2", f"password: {HIDDEN}"),
        ("https://user:pass@host/x?a=1", f"https://{HIDDEN}@host/x?a=1"),
        ("https://ghost@host", f"https://{HIDDEN}@host"),
        ("https://host/x?token=abcdef&y=1", f"https://host/x?token={HIDDEN}&y=1"),
        ("Bearer abcdefghijklmnop", f"Bearer {HIDDEN}"),
        ("see hf_abcdefghijklmnopqrst.", f"see {HIDDEN}."),
        ("AKIAABCDEFGHIJKLMNOP", HIDDEN),
        ("the value known-by-value-1 is said", f"the value {HIDDEN} is said"),
    ],
)
def test_text(text, expected):
    assert Redactor(["known-by-value-1"]).text(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "'api_key': None, 'password': null",
        "api_key=${oc.env:OPENAI_API_KEY}",
        "data.prompt_key=prompt eos_token='<|im_end|>' data.max_tokens=512",
        "sha256:0f343b0931126a20f133d67c2b018a3b5a0b2d7e1c",
        "https://host:8000/path s3://bucket/key",
        "actor/entropy:0.5 - response_length/mean:12",
        "secret_count: 17",
    ],
)
def test_what_is_no_secret_stays(text):
    assert Redactor(["short"]).text(f"{text} short") == f"{text} short"


def test_data_keeps_its_shape_and_its_numbers():
    data = {"api_key": "abcd", "token": 5, "steps": [1, None, True], "env": {"X_TOKEN": "abcd", "list": ["u:p", "x"]}}
    hidden = {**data, "api_key": HIDDEN, "env": {"X_TOKEN": HIDDEN, "list": ["u:p", "x"]}}
    assert Redactor([]).data(data) == hidden
    assert set(secrets_in({"verl": IN_RECIPE})) == set(PLANTED_IN_RECIPE)


WRITTEN_BY_PROCESSES = {"log.txt", "ray.log", "overrides.yaml"}


def found(root, words) -> list[str]:
    """`file: word` for every word in any file below root that is no output of a started process."""
    hits = []
    for folder, _, files in os.walk(root):
        if os.path.basename(folder) == "worker-logs":
            continue
        for file in set(files) - WRITTEN_BY_PROCESSES:
            with open(os.path.join(folder, file), "rb") as stream:
                content = stream.read()
            hits += [f"{file}: {word}" for word in words if word.encode() in content]
    return hits


class Talkative(FakeStages):
    """Stages that print their environment and their command, and crash once with it in the last line."""

    def start(self, argv, env, cwd, log):
        with log.open("a") as stream:
            print({k: v for k, v in env.items() if k in PLANTED}, list(argv), file=stream)
            print("cannot reach the tracker with", env["WANDB_API_KEY"], *IN_RECIPE.values(), file=stream)
        (log.parent / "hydra" / ".hydra").mkdir(parents=True, exist_ok=True)
        (log.parent / "hydra" / ".hydra" / "overrides.yaml").write_text("\n".join(f"- {a}" for a in argv[3:]))
        return super().start(argv, env, cwd, log)


def test_a_run_writes_and_prints_no_secret(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FAKE", json.dumps({"grpo": "crash@3"}))
    recipe = write_project(tmp_path, rows=["direct-grpo"])
    text = recipe.read_text()
    student_rl = text.index("student_rl:")
    place = text.index("verl:", student_rl) + len("verl:")
    added = "".join(f"\n      {json.dumps(key)}: {json.dumps(value)}" for key, value in IN_RECIPE.items())
    recipe.write_text(text[:place] + added + text[place:])
    planted = (*PLANTED.values(), *PLANTED_IN_RECIPE)
    run_dir = tmp_path / "run"

    plan, lines = make_plan(load_recipe(recipe), run_dir=run_dir), Lines()
    command = Talkative()
    (failure,) = run_plan(plan, lines, launcher=command)
    assert any("planted-override-0123" in word for argv in command.started for word in argv), "verl gets the real one"
    assert HIDDEN in str(failure) and not any(word in str(failure) for word in planted)
    assert run_plan(plan, lines, launcher=Talkative()) == []
    monkeypatch.setattr("verl_s2d.workflow.lane.choose_launcher", lambda plan, environment, log: Talkative())
    for arguments in (["plan", "--overrides"], ["plan", "--json"], ["status"], ["report"], ["verify"], ["gc"]):
        where = [str(run_dir)] if arguments[0] in ("verify", "gc") else [str(recipe), "--run-dir", str(run_dir)]
        assert cli.main([arguments[0], *where, *arguments[1:]]) == 0
    out, err = capsys.readouterr()
    assert not [word for word in planted if word in out + err + "".join(lines.notes)]
    assert found(run_dir, planted) == []
    stage = next(plan.context.directory(n) for n in plan.order if n.kind == "grpo")
    settings = read_manifest(stage)["settings"]["verl"]
    assert settings["+trainer.tracking_api_key"] == HIDDEN and settings["data.train_batch_size"] == 4


def test_errors_hide_the_value_they_complain_about(tmp_path, capsys):
    recipe = write_project(tmp_path, stages__student_rl__verl={"trainer.api_key": ["planted-in-a-list-1"]}, nmae=1)
    assert cli.main(["plan", str(recipe)]) == 2
    recipe = write_project(tmp_path, api_key="planted-unknown-key-1")
    assert cli.main(["plan", str(recipe)]) == 2
    assert "planted" not in "".join(capsys.readouterr())
