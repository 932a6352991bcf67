"""Sample the cache of teacher rollouts that stage 2a trains on."""

from __future__ import annotations

import sys
from pathlib import Path

from verl_s2d.arguments import plain_arguments
from verl_s2d.data.pool_key import is_pool_id
from verl_s2d.stages.prepare.prompt_pool import PromptPool
from verl_s2d.stages.prepare.stage import prompts_file, slice_of
from verl_s2d.stages.shared.node_settings import template_environment
from verl_s2d.stages.shared.sampling_stage import SamplingStage
from verl_s2d.stages.shared.summary_file import read_summary
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.ledger import Ledger, empty_ledger
from verl_s2d.workflow.stage import Command, Context, metrics_file


class Rollouts(SamplingStage):
    """Samples the teacher's responses with vLLM: as many as the warmup reads, or a number per prompt."""

    kind = "rollouts"
    section = "stages.rollouts"
    required_files = ("rollouts.parquet", "rollouts.json")
    consumes = ("sampled_tokens",)

    def command(self, node: Node, context: Context, attempt: int) -> Command:
        s = node.settings
        arguments = {
            **self.arguments(node, context),
            "data": str(prompts_file(node, context)),
            "n": s.get("per_prompt"),
            "rows": s.get("rows"),
            **({"log_probs": s["log_probs"]} if "log_probs" in s else {}),
            "top_k": s["top_k"],
            "max_tokens": s["response_tokens"],
        }
        env = {"VERL_FILE_LOGGER_PATH": str(metrics_file(context.directory(node), attempt))}
        env |= template_environment(node)
        argv = [sys.executable, "-m", "verl_s2d.stages.rollouts.rollout_cache", *plain_arguments(arguments)]
        return Command(argv, env)

    def finalize(self, node: Node, directory: Path) -> None:
        super().finalize(node, directory)
        self._sampled_tokens(directory)

    def ledger(self, node: Node, directory: Path, seconds: float) -> Ledger:
        read = self._prompts_read(directory) if isinstance(node.inputs["slices"].stage, PromptPool) else []
        return empty_ledger(seconds) | {"sampled_tokens": self._sampled_tokens(directory), "prompts_read": read}

    def _prompts_read(self, directory: Path) -> list[str]:
        import pyarrow.parquet as pq

        ids = pq.read_table(directory / "rollouts.parquet", columns=["problem_id"])["problem_id"].unique().to_pylist()
        return sorted(filter(is_pool_id, ids))

    def _sampled_tokens(self, directory: Path) -> int:
        summary = read_summary(directory / "rollouts.json", lambda found: "sampled_tokens" in found["counts"])
        return int(summary["counts"]["sampled_tokens"])

    def response_tokens(self, node: Node) -> int:
        return node.settings["response_tokens"]

    def sequences(self, node: Node, problems: int | None) -> int | None:
        s = node.settings
        if "rows" not in s:
            return None if problems is None else problems * s["per_prompt"]
        if s["temperature"] > 0:
            return s["rows"]
        # Greedy rollouts of a prompt are equal, so one suffices.
        return None if problems is None else min(s["rows"], problems)

    def describe(self, node: Node) -> str:
        s = node.settings
        sampled = f"{s['rows']:,} teacher rollouts" if "rows" in s else f"{s['per_prompt']} teacher rollouts a prompt"
        return f"{sampled} of slice {slice_of(node)}, temperature {s['temperature']:g}"
