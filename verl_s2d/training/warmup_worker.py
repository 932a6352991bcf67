"""Stage 2a's worker: verl's training engine for the student, and a frozen one for the teacher beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from verl.single_controller.base.decorator import make_nd_compute_dataproto_dispatch_fn, register
from verl.utils import tensordict_utils as tu
from verl.utils.ulysses import get_ulysses_sequence_parallel_rank
from verl.workers.engine_workers import Dispatch, TrainingWorker, TrainingWorkerConfig

from verl_s2d.objectives.forward_kl import ForwardKL, forward_kl
from verl_s2d.training.teacher_worker import TeacherWorker


class WarmupWorker(TrainingWorker):
    """Trains the student on KL(teacher || student), querying the teacher once per micro-batch.

    At most one micro-batch of teacher logits exists at a time.
    """

    def __init__(
        self, config: TrainingWorkerConfig, *, teacher_path: str, trust_remote_code: bool, vocab_size: int, chunk: int
    ):
        super().__init__(config)
        frozen = dataclasses.replace(
            config, engine_config=dataclasses.replace(config.engine_config, forward_only=True), profiler_config=None
        )
        self.teacher = TeacherWorker(frozen, teacher_path=teacher_path, trust_remote_code=trust_remote_code)
        self.loss_fn = ForwardKLLoss(self._teacher_logits, vocab_size=vocab_size, chunk_tokens=chunk)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def reset(self) -> None:
        super().reset()
        self.teacher.reset()

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="train"), blocking=False)
    def train_batch(self, data: TensorDict) -> TensorDict | None:
        """verl's training step. The flags make its engines call the loss on the logits first, and skip log-probs."""
        tu.assign_non_tensor(data, distillation_use_topk=True, distillation_only=True)
        output = super().train_batch(data)
        if output is not None:
            metrics = tu.get(output, "metrics")
            for name in [name for name in metrics if name.startswith("train/")]:
                metrics[name] = sum(_values(metrics[name]))
            metrics["train/teacher_scored_tokens"] = round(metrics["train/teacher_scored_tokens"])
        return output

    def _teacher_logits(self, micro_batch: TensorDict) -> torch.Tensor:
        """The teacher's logits in the student's own layout: same packing, same slice of a parallel sequence."""
        captured: list[torch.Tensor] = []

        def capture(student_logits=None, model_output=None, **_: Any):
            if student_logits is not None:
                captured.append(student_logits)
                return {}
            return torch.zeros(()), {}

        with torch.no_grad(), self.teacher.engine.eval_mode():
            self.teacher.engine.forward_step(micro_batch, loss_function=capture, forward_only=True)
        return captured[0].squeeze(0)


class ForwardKLLoss:
    """The loss in the two calls that verl's engines make: on a micro-batch's logits, then on what that returned.

    Token mean over the response tokens of the whole batch: every micro-batch and rank divides by the global count.

    Args:
        teacher_logits: micro-batch -> (tokens, V_t), tokens as in the student's logits.
        vocab_size: real size of the shared vocabulary.
        chunk_tokens: see objectives.forward_kl.
    """

    def __init__(self, teacher_logits: Callable[[TensorDict], torch.Tensor], *, vocab_size: int, chunk_tokens: int):
        self._teacher_logits, self._vocab_size, self._chunk_tokens = teacher_logits, vocab_size, chunk_tokens

    def __call__(self, *, data: TensorDict, student_logits=None, model_output=None, dp_group=None, **_: Any):
        if student_logits is not None:
            return self._per_token(student_logits.squeeze(0), data)
        return self._reduce(model_output, data)

    def _per_token(self, student_logits: torch.Tensor, data: TensorDict) -> dict[str, torch.Tensor]:
        """Each result as (1, tokens), zero where no response token is predicted."""
        tokens = student_logits.shape[0]
        rows = _predicting_rows(data, tokens).to(student_logits.device)
        results = forward_kl(
            student_logits,
            self._teacher_logits(data),
            rows=rows,
            vocab_size=self._vocab_size,
            chunk_tokens=self._chunk_tokens,
        )
        return {
            name: values.new_zeros(tokens).index_put((rows,), values).unsqueeze(0)
            for name, values in zip(ForwardKL._fields, results, strict=True)
        }

    def _reduce(self, model_output: dict[str, torch.Tensor], data: TensorDict) -> tuple[torch.Tensor, dict[str, Any]]:
        tokens = max(data["batch_num_tokens"], 1)
        sums = {name: model_output[name].values().sum() for name in ForwardKL._fields}
        metrics = {
            f"train/{ours}": (sums[name].detach() / tokens).item()
            for ours, name in (
                ("forward_kl", "kl"),
                ("student_entropy", "student_entropy"),
                ("teacher_entropy", "teacher_entropy"),
                ("top1_agreement", "top1_agreement"),
            )
        }
        metrics["train/teacher_scored_tokens"] = int(data["loss_mask"].values().sum())
        # FSDP averages gradients over data-parallel ranks, hence dp_size.
        return sums["kl"] / tokens * data["dp_size"], metrics


def _predicting_rows(data: TensorDict, tokens: int) -> torch.Tensor:
    """Indices of this rank's logits rows that predict a response token (row t predicts token t + 1)."""
    predicts = torch.roll(data["loss_mask"].values(), shifts=-1, dims=0)
    parallel = tu.get_non_tensor_data(data, key="sp_size", default=1)
    if parallel > 1 or len(predicts) != tokens:
        # Ulysses pads the packed sequence to a multiple of its size and gives each rank a contiguous part.
        predicts = torch.nn.functional.pad(predicts, (0, tokens * parallel - len(predicts)))
        rank = get_ulysses_sequence_parallel_rank() if parallel > 1 else 0
        predicts = predicts[rank * tokens : (rank + 1) * tokens]
    return predicts.nonzero().squeeze(-1)


def _values(metric: Any) -> list[float]:
    """Numbers of a metric that verl gathered in lists: over micro-batches, then over ranks."""
    if isinstance(metric, list | tuple):
        return [number for part in metric for number in _values(part)]
    return [float(metric)]
