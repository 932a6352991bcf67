"""Check part `registration`: verl's platform and our registration, also where Ray hides the GPUs."""

from __future__ import annotations

import os
from contextlib import ExitStack

from verl_s2d.checks.verl_probe import VerlProbe
from verl_s2d.gpu_check.figures import Recorder
from verl_s2d.gpu_check.part_settings import Settings
from verl_s2d.platforms.subprocess_query import Probe

_PLATFORM = """
import json
import verl
from verl.plugin.platform import get_platform
print("\\nS2D " + json.dumps(get_platform().device_name))
"""


def run(settings: Settings, record: Recorder) -> None:
    """Query verl's platform, our registration and our shims in processes with and without a visible GPU."""
    stage = dict(os.environ)
    hidden = stage | {"CUDA_VISIBLE_DEVICES": ""}
    plain = {name: value for name, value in hidden.items() if name != "VERL_PLATFORM"}
    questions = {"platform where no GPU is visible": (hidden, settings.device)}
    if not settings.on_cpu:
        questions["platform"] = (stage, settings.device)
    # As on a Ray head without a GPU, or for a user of plain verl: VERL_PLATFORM is not set.
    questions["platform where no GPU is visible and none was asked for"] = (plain, "cuda")
    with ExitStack() as stack:
        registered = stack.enter_context(VerlProbe(settings.device, stage))
        probes = {name: stack.enter_context(Probe(["-c", _PLATFORM], e)) for name, (e, _) in questions.items()}
        _registered(settings, record, registered)
        for name, (_, expected) in questions.items():
            told, failure = probes[name].answer()
            record.expect(name, told == expected, told if told is not None else failure, expected)


def _registered(settings: Settings, record: Recorder, probe: VerlProbe) -> None:
    ok, detail = probe.registration()
    record.expect("registration", ok, detail.splitlines()[0] if ok else detail, "no error")
    answer, _ = probe.answer()
    if "registration" not in (answer or {}):
        return
    shims = sorted(answer["registration"]["shims"])
    expected = ["process_group_backend", "vllm_distribution_name"] if settings.on_cpu else []
    # Two are active on every platform, once the module that they change is imported.
    everywhere = ("config_checks", "reward_loop_trust")
    found = [name for name in shims if name not in everywhere]
    wanted = ", ".join(expected or everywhere)
    record.expect("shims", found == expected, ", ".join(shims) or "none", f"only {wanted}")
