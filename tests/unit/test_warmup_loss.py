"""The warmup's loss function by itself, as verl's engines call it: on logits, then on what that returned."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu

from verl_s2d.training.warmup_worker import ForwardKLLoss

VOCABULARY = 5


def micro_batch(*masks: list[int], batch_num_tokens: int, dp_size: int = 1) -> TensorDict:
    nested = torch.nested.as_nested_tensor([torch.tensor(mask) for mask in masks], layout=torch.jagged)
    return tu.get_tensordict(
        {"input_ids": nested, "loss_mask": nested},
        {"batch_num_tokens": batch_num_tokens, "dp_size": dp_size, "sp_size": 1},
    )


def run(data: TensorDict, student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, dict]:
    """What verl's FSDP engine does with a packed micro-batch; logits are (tokens, vocabulary)."""
    loss = ForwardKLLoss(lambda _: teacher, vocab_size=VOCABULARY, chunk_tokens=2)
    per_token = loss(data=data, student_logits=student[None])
    offsets = data["loss_mask"].offsets()
    output = {k: torch.nested.nested_tensor_from_jagged(v.squeeze(0), offsets) for k, v in per_token.items()}
    return loss(data=data, model_output=output, dp_group=None)


def test_the_row_before_each_response_token_counts_and_no_other():
    data = micro_batch([0, 0, 1, 1], [0, 1], batch_num_tokens=3)
    student = torch.randn(6, VOCABULARY, requires_grad=True)
    teacher = torch.randn(6, VOCABULARY)
    value, metrics = run(data, student, teacher)
    rows = [1, 2, 4]
    log_s, log_t = student.detach()[rows].log_softmax(-1), teacher[rows].log_softmax(-1)
    assert value.item() == pytest.approx((log_t.exp() * (log_t - log_s)).sum().item() / 3, rel=1e-5)
    assert metrics["train/forward_kl"] == pytest.approx(value.item())
    assert metrics["train/teacher_scored_tokens"] == 3
    value.backward()
    assert student.grad.abs().sum(-1).nonzero().squeeze(-1).tolist() == rows


def test_a_micro_batch_without_a_response_token_gives_zero_and_no_gradient():
    data = micro_batch([0, 0, 0], [0], batch_num_tokens=7)
    student = torch.randn(4, VOCABULARY, requires_grad=True)
    value, metrics = run(data, student, torch.randn(4, VOCABULARY))
    value.backward()
    assert value.item() == 0 and (student.grad == 0).all()
    assert set(metrics.values()) == {0}


def test_the_loss_is_a_share_of_the_global_token_mean():
    """Divided by the whole batch's tokens, times the ranks that FSDP averages over."""
    student, teacher = torch.randn(3, VOCABULARY), torch.randn(3, VOCABULARY)
    whole, _ = run(micro_batch([0, 1, 1], batch_num_tokens=2), student, teacher)
    share, metrics = run(micro_batch([0, 1, 1], batch_num_tokens=8, dp_size=2), student, teacher)
    assert share.item() == pytest.approx(whole.item() / 4 * 2)
    assert metrics["train/forward_kl"] == pytest.approx(whole.item() / 4)
