"""Every verifier call is written down, also when verl makes it."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import tiny
from verl_s2d.errors import UserError
from verl_s2d.verifiers.ledgered import compute_score, verifier_calls
from verl_s2d.verifiers.score import PAUSES, Unscored

SUMS = f"{Path(tiny.__file__)}:score_sum"


def call(number: int, ledger: Path, response: str = "3", verifier: str = SUMS):
    return compute_score(
        data_source="sums",
        solution_str=response,
        ground_truth="3",
        extra_info={"index": f"p{number}", "num_turns": None},
        verifier=verifier,
        ledger_dir=str(ledger),
    )


def entries(ledger: Path) -> list[str]:
    return [json.loads(line)["id"] for path in ledger.glob("*.jsonl") for line in path.read_text().splitlines()]


def _call_in_child(ledger: Path) -> None:
    call(100, ledger)


def test_score_and_line(tmp_path):
    assert call(1, tmp_path / "new") == 1.0 and call(2, tmp_path / "new", response="4") == 0.0
    assert entries(tmp_path / "new") == ["p1", "p2"]
    (file,) = (tmp_path / "new").iterdir()
    assert file.name.endswith(f"-{os.getpid()}.jsonl")


def test_threads_and_forked_processes(tmp_path):
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda i: call(i, tmp_path), range(500)))
    child = multiprocessing.get_context("fork").Process(target=_call_in_child, args=(tmp_path,))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert sorted(entries(tmp_path)) == sorted([f"p{i}" for i in range(500)] + ["p100"])
    assert len(list(tmp_path.iterdir())) == 2


def test_a_verifier_that_fails_has_read_the_label(tmp_path):
    (tmp_path / "v.py").write_text(
        "def fails(**kwargs): raise ValueError\ndef full(**kwargs): return {'score': 1, 'acc': 1}"
    )
    with pytest.raises(ValueError):
        call(1, tmp_path / "ledger", verifier=f"{tmp_path}/v.py:fails")
    assert call(2, tmp_path / "ledger", verifier=f"{tmp_path}/v.py:full") == {"score": 1, "acc": 1}
    assert entries(tmp_path / "ledger") == ["p1", "p2"]


def test_bad_input(tmp_path):
    with pytest.raises(UserError, match="Unknown verifier"):
        call(1, tmp_path, verifier="maths")
    with pytest.raises(UserError, match="no id"):
        compute_score("s", "3", "3", {}, verifier=SUMS, ledger_dir=str(tmp_path))
    assert entries(tmp_path) == []


def test_called_by_verls_reward_manager(tmp_path):
    """verl's own loader, with the keys that stages 1 and 3 set, and its default reward manager."""
    import torch
    from omegaconf import OmegaConf
    from transformers import AutoTokenizer
    from verl import DataProto
    from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager
    from verl.trainer.ppo.reward import get_custom_reward_fn

    function = {
        "path": "pkg://verl_s2d.verifiers.ledgered",
        "name": "compute_score",
        "reward_kwargs": {"verifier": SUMS, "ledger_dir": str(tmp_path / "ledger")},
    }
    config = OmegaConf.create({"reward": {"custom_reward_function": function}})
    tiny.write_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    responses = torch.tensor([[*tokenizer.encode("1 3 <|im_end|>"), 0]])

    async def score() -> dict:
        # Managers keep the event loop they are made in.
        manager = NaiveRewardManager(config, tokenizer, get_custom_reward_fn(config))
        tensors = {"responses": responses, "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0]])}
        row = {
            "data_source": ["sums"],
            "reward_model": [{"style": "rule", "ground_truth": "3"}],
            "extra_info": [{"index": "p5"}],
        }
        return await manager.run_single(DataProto.from_dict(tensors, non_tensors=row))

    assert asyncio.run(score()) == {"reward_score": 1.0, "reward_extra_info": {"acc": 1.0}}
    assert entries(tmp_path / "ledger") == ["p5"]


def test_a_call_without_a_verdict_is_counted(tmp_path):
    (tmp_path / "v.py").write_text(
        "from verl_s2d.verifiers.unsettled import report_unsettled\n"
        "def score(solution_str, **_):\n"
        "    if solution_str == 'slow':\n"
        "        report_unsettled('it took too long')\n"
        "    return 0.0\n"
    )
    for response in ("slow", "fast"):
        call(1, tmp_path / "stage" / "verifier", response, verifier=f"{tmp_path}/v.py:score")
    assert verifier_calls(tmp_path / "stage") == {
        "labels_read": ["p1"],
        "prompts_read": [],
        "verifier_calls": 2,
        "unsettled_calls": 1,
        "unscored_calls": 0,
        "judge_calls": 0,
        "judge_tokens": 0,
    }


DOWN = """
from pathlib import Path
from verl_s2d.verifiers.score import Score, Unscored
CALLS = Path(__file__).with_name("calls")
def score(solution_str, ground_truth, **_):
    made = int(CALLS.read_text())
    CALLS.write_text(str(made + 1))
    if made < {down}:
        raise Unscored("the service is down")
    return Score(float(solution_str == ground_truth), {{"tests": 3}})
"""


@given(down=st.integers(0, 6))
@settings(deadline=None, max_examples=20)
def test_a_verifier_that_is_down_is_called_again_after_pauses_and_never_scores_0(tmp_path_factory, down):
    directory, slept = tmp_path_factory.mktemp("down"), []
    (directory / "v.py").write_text(DOWN.format(down=down))
    (directory / "calls").write_text("0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("verl_s2d.verifiers.score.time.sleep", slept.append)
        if down <= len(PAUSES):
            result = call(1, directory / "stage" / "verifier", verifier=f"{directory}/v.py:score")
            assert result == {"score": 1.0, "tests": 3}
        else:
            with pytest.raises(Unscored, match="the service is down"):
                call(1, directory / "stage" / "verifier", verifier=f"{directory}/v.py:score")
    assert slept == list(PAUSES[:down]) and int((directory / "calls").read_text()) == len(slept) + 1
    counted = verifier_calls(directory / "stage")
    assert (counted["verifier_calls"], counted["unsettled_calls"]) == (1, 0), "a repetition is no call of its own"
    assert counted["unscored_calls"] == (down > len(PAUSES)) and counted["labels_read"] == ["p1"]


def test_each_data_source_has_its_verifier(tmp_path):
    (tmp_path / "v.py").write_text("async def score(solution_str, **_): return -1.0")
    verifier = json.dumps({"sums": SUMS, "code/taco": f"{tmp_path}/v.py:score"})
    assert call(1, tmp_path / "ledger", verifier=verifier) == 1.0

    def of(source: str):
        return compute_score(source, "3", "3", {"index": "p2"}, verifier=verifier, ledger_dir=str(tmp_path / "ledger"))

    assert of("code/taco") == -1.0
    with pytest.raises(UserError, match="has no verifier") as caught:
        of("gsm8k")
    assert caught.value.value == "gsm8k" and "code/taco, sums" in caught.value.remedy
