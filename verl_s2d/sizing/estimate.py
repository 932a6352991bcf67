"""Estimate each stage's memory by phase, cost and disk space, as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from verl_s2d.recipe.cluster_settings import DEFAULT_GPU, TFLOPS
from verl_s2d.sizing import cost
from verl_s2d.sizing.cache import CacheUse, cache_use, waste_warning
from verl_s2d.sizing.cost import Cost, sampling_cost, training_cost
from verl_s2d.sizing.disk import StageDisk, run_disk, sampling_disk, training_disk
from verl_s2d.sizing.engine_memory import frozen_memory, training_memory
from verl_s2d.sizing.generation import Generation, generation
from verl_s2d.sizing.layouts import check_sampler
from verl_s2d.sizing.model_shapes import Models
from verl_s2d.sizing.phases import Phase, fullest, training_phases
from verl_s2d.sizing.remedies import cache_remedy, remedy_for
from verl_s2d.sizing.served import servers_problem
from verl_s2d.sizing.shapes import ModelShape
from verl_s2d.stages.prepare.slice_sizes import evaluation_sets, slice_size
from verl_s2d.stages.rollouts.stage import Rollouts
from verl_s2d.stages.shared.sampling_stage import SamplingStage, engine
from verl_s2d.stages.shared.signal_settings import servers_of_node
from verl_s2d.verl_settings.stage_sizes import Rollout, Training
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.plan import Plan

GIB = 2**30
_TIGHT = 0.85
"""Above this fraction of the GPU's memory the estimate's own error may decide."""
_SAMPLER_UTILIZATION = 0.92
"""vLLM's default, which verl_s2d.sampling keeps."""


class Estimate:
    """Sizes of a plan's stages.

    Args:
        settings: label -> composed configuration of every training stage.
        models: shapes; estimates that need an unknown shape are left out.
    """

    def __init__(self, plan: Plan, settings: Mapping[str, Mapping[str, Any]], models: Models):
        self._plan, self._settings, self._models = plan, settings, models
        self._prompt = plan.recipe.data.prompt_tokens

    def view(self) -> dict[str, Any]:
        """Return `stages` (label -> {memory, cost, disk}), totals, assumptions and whether everything fits."""
        stages, costs, disks, warnings = {}, [], [], []
        for node in self._plan.order:
            if node.label in self._settings:
                memory, spent = self._training(node)
            elif isinstance(node.stage, SamplingStage):
                memory, spent = self._sampling(node)
            else:
                continue
            disk = self._disk(node, spent)
            stages[node.label] = {
                "memory": memory,
                "cost": _rounded(cost.total([spent], self._tflops)),
                "disk": disk and _disk_view(disk),
            }
            if isinstance(node.stage, Rollouts) and (use := cache_use(node, self._plan.order, self._problems(node))):
                stages[node.label]["cache"] = _cache_view(use)
                warnings += filter(None, [waste_warning(node, use)])
            costs.append(spent)
            disks += [disk] if disk else []
        most, left = run_disk(disks)
        return {
            "gpu_memory_gib": self._plan.context.cluster.gpu_memory_gb,
            "stages": stages,
            "total": _rounded(cost.total(costs, self._tflops)),
            "assumed": {
                "gpu": self._plan.context.cluster.gpu,
                "gpu_tflops": self._tflops,
                "mfu_of_passes": cost.PASS_MFU,
                "mfu_of_sampling": cost.SAMPLING_MFU,
            },
            "unknown": self._models.unknown,
            "warnings": warnings,
            "disk_gb": {"most": round(most / 1e9), "left": round(left / 1e9), "complete": len(disks) == len(stages)},
            "fits": all(s["memory"] is None or s["memory"]["problem"] is None for s in stages.values()),
        }

    @property
    def _tflops(self) -> float | None:
        """Return the dense peak of a GPU; None on a CPU, where no hours are estimated."""
        return None if self._plan.context.device == "cpu" else TFLOPS[self._plan.context.cluster.gpu or DEFAULT_GPU]

    @property
    def _gpu_bytes(self) -> float:
        return self._plan.context.cluster.gpu_memory_gb * GIB

    def _training(self, node: Node) -> tuple[dict[str, Any] | None, Cost]:
        response = node.stage.response_tokens(node)
        training = node.stage.demand(self._settings[node.label], self._prompt + response)
        shape, frozen, teacher = self._models.shape(node), self._models.frozen(node), self._models.largest_frozen(node)
        mean = node.stage.mean_response_tokens(node)
        spent = training_cost(node, training, shape, frozen, prompt=self._prompt, response=mean)
        known = shape is not None and None not in frozen
        if not known or not training.actor.accelerator:
            return None, spent
        sampler = training.rollout and generation(training.rollout, shape, training.longest, self._gpu_bytes)
        phases = training_phases(training, shape, teacher, sampler)
        problem = self._problem(phases, training, sampler) or self._served(node, training)
        host = _host_bytes(training, shape, frozen) * self._plan.context.cluster.gpus_per_node
        return self._memory_view(phases, sampler, problem, host, training.batch), spent

    def _disk(self, node: Node, spent: Cost) -> StageDisk | None:
        if node.label not in self._settings:
            response = node.stage.response_tokens(node)
            stored = node.settings.get("log_probs", 0)
            return sampling_disk(spent.sampled_tokens, self._prompt, response, stored) if spent.sampled_tokens else None
        settings, shape = self._settings[node.label], self._models.shape(node)
        if shape is None:
            return None
        training = node.stage.demand(settings, self._prompt + node.stage.response_tokens(node))
        return training_disk(node, settings, training, shape)

    def _sampling(self, node: Node) -> tuple[dict[str, Any] | None, Cost]:
        """Estimate a stage that only samples with vLLM."""
        shape, tensor = self._models.shape(node), node.operations["tensor_parallel_size"]
        response = node.stage.response_tokens(node)
        sequences = node.stage.sequences(node, self._problems(node))
        spent = sampling_cost(sequences, shape, prompt=self._prompt, response=response, scored=node.stage.scored)
        if self._plan.context.device == "cpu":
            return None, spent
        cluster = self._plan.context.cluster
        check_sampler(node, shape, cluster)
        large, told = cluster.gpu_memory_gb >= 70, engine(node)
        rollout = Rollout(
            section=node.stage.section,
            world=cluster.nodes * cluster.gpus_per_node,
            tensor=tensor,
            pipeline=1,
            utilization=told.get("gpu_memory_utilization", _SAMPLER_UTILIZATION),
            dtype_bytes=4 if told.get("dtype") in ("float32", "float") else 2,
            batched_tokens=told.get("max_num_batched_tokens", 16384 if large else 8192),
            sequences=told.get("max_num_seqs", 1024 if large else 256),
            sleeps=False,
            bucket_bytes=0,
        )
        if shape is None:
            return None, spent
        sampler = generation(rollout, shape, self._prompt + response, self._gpu_bytes)
        phases = [Phase("rollout", {"rollout engine": sampler.share})]
        problem = None
        if not sampler.fits:
            problem = _no_sequence(sampler, f"raise {rollout.section}.tensor_parallel_size")
        return self._memory_view(phases, sampler, problem, 0, sequences), spent

    def _served(self, node: Node, training: Training) -> str | None:
        """Name the first frozen model that does not fit on its servers, and the key to change."""
        for role, servers in servers_of_node(node).items():
            if (shape := self._models.shape(node, role)) is not None and training.rollout is not None:
                problem = servers_problem(
                    servers,
                    shape,
                    role=role,
                    longest=training.longest,
                    dtype_bytes=training.rollout.dtype_bytes,
                    gpu_bytes=self._gpu_bytes,
                )
                if problem is not None:
                    return problem
        return None

    def _problem(self, phases: list[Phase], training: Training, sampler: Generation | None) -> str | None:
        worst = fullest(phases)
        if worst.total > self._gpu_bytes:
            return f"{worst.name} needs {worst.total / GIB:.1f} GiB: {remedy_for(worst, training)}"
        if sampler is not None and not sampler.fits:
            return _no_sequence(sampler, cache_remedy(sampler, training.rollout))
        return None

    def _memory_view(
        self,
        phases: list[Phase],
        sampler: Generation | None,
        problem: str | None,
        host: float,
        sequences: int | None,
    ) -> dict[str, Any]:
        worst = fullest(phases)
        view = {
            "phases": {p.name: {term: round(size / GIB, 2) for term, size in p.terms.items()} for p in phases},
            "peak": worst.name,
            "peak_gib": round(worst.total / GIB, 2),
            "tight": problem is None and worst.total > _TIGHT * self._gpu_bytes and worst.name != "rollout",
            "problem": problem,
            "host_gib_per_node": round(host / GIB, 1),
        }
        if sampler is not None:
            view["sampling"] = {
                "weights_gib": round(sampler.weights / GIB, 2),
                "kv_cache_gib": round(sampler.cache / GIB, 2),
                "kv_bytes_per_token": round(sampler.token_bytes),
                "sequences_at_once": sampler.fits,
                "replicas": sampler.replicas,
                "sequences_in_flight": min(sampler.replicas * sampler.limit, sequences or math.inf),
            }
        return view

    def _problems(self, node: Node) -> int | None:
        """Count a stage's prompts, from its files or else by the recipe's `data.expected`."""
        expected = self._plan.recipe.data.expected
        if "slices" in node.inputs:
            return slice_size(self._plan, node, expected=expected.get("train"))
        files = evaluation_sets(self._plan, node)
        if files:
            from verl_s2d.data.formats.data_files import row_count

            return sum(row_count(path, key=f"data.eval.{name}") for name, path in files.items())
        sets = [count for name, count in expected.items() if name != "train"]
        return sum(sets) or None


def _no_sequence(sampler: Generation, remedy: str) -> str:
    left = sampler.cache / GIB
    return f"rollout leaves {left:.1f} GiB of cache, less than one sequence of {sampler.longest} tokens: {remedy}"


def _host_bytes(training: Training, shape: ModelShape, frozen: list[ModelShape]) -> float:
    engine = training.reference
    references = [frozen_memory(model, engine).host for model in frozen or [shape]] if engine else []
    return training_memory(shape, training.actor).host + sum(references)


def _cache_view(use: CacheUse) -> dict[str, int]:
    return {
        "rows_sampled": use.sampled,
        "rows_read": use.read,
        "tokens_sampled": use.sampled_tokens,
        "tokens_read": use.read_tokens,
    }


def _disk_view(disk: StageDisk) -> dict[str, Any]:
    return {
        "checkpoint_gb": round(disk.checkpoint / 1e9, 1),
        "kept": disk.kept,
        "result_gb": round(disk.result / 1e9, 1),
    }


def _rounded(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Round FLOPs to four digits and hours to one decimal."""

    def tidy(name: str, value: Any) -> Any:
        if value is None or isinstance(value, int):
            return value
        return round(value, 1) if name == "gpu_hours" else float(f"{value:.4g}")

    return {name: tidy(name, value) for name, value in figures.items()}
