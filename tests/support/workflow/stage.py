"""Plays a stage's process: steps, metrics, checkpoints, resume, and on demand crashes and hangs.

    python stage.py MODULE key=value ...

FAKE (environment, JSON):
{"<kind>": "crash@2" | "hang@2" | "hard-hang@2" | "slow" | "no-export" | "calls" | "short" | "meet"}.
A crash happens once, recorded by a file in the stage directory. "meet" waits until a second stage waits. A stage calls
the verifier once a step, with "calls" once a response; "short" ends it after a step, whatever its budget of tokens.
FAKE_METRICS (environment, JSON): {"<kind>": {"<step>": {"metric": value}}}, logged in addition.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import sys
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from verl_s2d.recipe.until import Until
from verl_s2d.stages.ending import end_file
from verl_s2d.stages.ending.end_rule import EndRule
from verl_s2d.workflow import save_request

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))


def play(
    module: str,
    rest: Sequence[str],
    stage: Path,
    environment: Mapping[str, str],
    say: Callable[[str], None],
    called: Callable[[str], None] = lambda problem: None,
):
    """Do what the module would leave behind in `stage`; `called` hears of every call of the verifier."""
    arguments = {k.lstrip("+"): v for k, _, v in (a.partition("=") for a in rest)}
    behaviour = json.loads(environment.get("FAKE", "{}")).get(stage.name.partition("-")[0], "")
    if module.endswith("rollout_cache"):
        (stage / "rollouts.parquet").write_bytes(b"parquet")
        (stage / "rollouts.json").write_text(json.dumps({"counts": {"sampled_tokens": 100}}))
    elif module.endswith("sample_and_score"):
        (stage / "generations.parquet").write_bytes(b"parquet")
        names = [k[4:] for k in arguments if k.startswith("set.")]
        one = {"n_problems": 5, "samples": 2, "avg": 0.5, "stderr": 0.1, "mean_tokens": 3.0, "truncated": 0.0}
        problems = [{"id": f"held-{i}", "correct": i % 3, "samples": 2} for i in range(5)]
        result = {
            "sets": {name: {**one, "pass_at": {"1": 0.5, "2": 0.8}} for name in names},
            "sampling": {},
            "per_problem": dict.fromkeys(names, problems),
        }
        (stage / "result.json").write_text(json.dumps(result))
    elif module.endswith("limit_prompts"):
        for key, file in arguments.items():
            if key == "train" or key.startswith("eval."):
                shutil.copy(file, stage / f"{key.removeprefix('eval.')}.parquet")
        (stage / "prompts.json").write_text(json.dumps({"files": {}}))
    else:
        logged = json.loads(environment.get("FAKE_METRICS", "{}")).get(stage.name.partition("-")[0], {})
        train(arguments, stage, behaviour, environment["VERL_FILE_LOGGER_PATH"], say, called, logged)


def train(
    arguments: dict[str, str],
    stage: Path,
    behaviour: str,
    metrics_file: str,
    say: Callable[[str], None],
    called: Callable[[str], None],
    logged: Mapping[str, Mapping],
):
    """verl's loop: resume from the tracker, call the verifier, save, log."""
    what, _, at = behaviour.partition("@")
    steps, every = int(arguments["trainer.total_training_steps"]), int(arguments["trainer.save_freq"])
    until, short = rules_of(arguments), what == "short"
    responses = int(arguments["data.train_batch_size"]) * int(arguments.get("actor_rollout_ref.rollout.n", 1))
    few = arguments.get("trainer.v1.trainer_mode") == "s2d_opd" and what != "calls"
    tokens = 5 if few else round(2.5 * responses)
    saved = Path(arguments["trainer.default_local_dir"])
    tracker = saved / "latest_checkpointed_iteration.txt"
    start = int(tracker.read_text()) if tracker.exists() else 0
    end_file.load(until, saved, start)
    steps = start if until.reason else steps
    metrics = os.open(metrics_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    ledger = arguments.get("reward.custom_reward_function.reward_kwargs.ledger_dir")
    say(f"starting at {start}")
    for step in range(start + 1, steps + 1):
        crashed = stage / f"crashed-{at}"
        if at and step == int(at):
            if what == "crash" and not crashed.exists():
                crashed.touch()
                say("Traceback: out of luck")
                raise SystemExit(3)
            if what == "hang" and not crashed.exists():
                crashed.touch()
                time.sleep(600)
            if what == "hard-hang":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                os.system("sleep 600 &")
                time.sleep(600)
        if what == "meet":
            (stage / "met").touch()
            deadline = time.monotonic() + 60
            while len([*stage.parent.glob("*/met")]) < 2:
                if time.monotonic() > deadline:
                    raise SystemExit(4)
                time.sleep(0.05)
        if what in ("slow", "deaf"):
            time.sleep(0.3)
        if ledger:
            Path(ledger).mkdir(exist_ok=True)
            with (Path(ledger) / f"{os.getpid()}.jsonl").open("a") as stream:
                line = json.dumps({"id": f"problem-{step}"}) + "\n"
                stream.write(line * (responses if what == "calls" else 1))
            called(f"problem-{step}")
        data = {"response_length/mean": 2.5, "train/teacher_scored_tokens": 7}
        data |= {"s2d/sampled_tokens": tokens, "s2d/teacher_scored_tokens": 6}
        data |= logged.get(str(step), {})
        until.add_step(step, tokens=tokens, travel=data.get("s2d/travel"), divergence=data.get("s2d/reverse_kl"))
        until.add_validation(step, data.get("val-core/held/acc/mean@4"))
        spent = until.reason or (until.active and short) or (what != "deaf" and save_request.asked(saved))
        if step % every == 0 or step == steps or spent:
            export = (
                saved
                / f"global_step_{step}"
                / ("actor/huggingface" if "data.val_files" in arguments else "huggingface")
            )
            if export.exists():
                shutil.rmtree(export)
            if what != "no-export":
                shutil.copytree(arguments.get("actor_rollout_ref.model.path") or arguments["model.path"], export)
            (saved / f"global_step_{step}").mkdir(parents=True, exist_ok=True)
            with zipfile.ZipFile(saved / f"global_step_{step}" / "data.pt", "w") as archive:
                archive.writestr("data.pkl", "state of the loader")
            end_file.store(until, saved, step)
            tracker.write_text(str(step))
        os.write(metrics, json.dumps({"step": step, "data": data}).encode() + b"\n")
        if spent:
            break
    os.close(metrics)


def rules_of(arguments: Mapping[str, str]) -> EndRule:
    """The rules that the command sets for its end."""
    given = {key.removeprefix("s2d.until."): text for key, text in arguments.items() if key.startswith("s2d.until.")}
    if not given:
        return EndRule(None)
    from hydra.core.override_parser.overrides_parser import OverridesParser  # imported here: it takes half a second

    parser = OverridesParser.create()
    return EndRule(Until(**{key: parser.parse_override(f"{key}={text}").value() for key, text in given.items()}))


if __name__ == "__main__":
    play(sys.argv[1], sys.argv[2:], Path.cwd(), os.environ, functools.partial(print, flush=True))
