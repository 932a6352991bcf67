"""Credits in verl's own loss: the joint loss's gradient against finite differences, TRRD's ratio, and what is GRPO."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tensordict import TensorDict
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.utils.losses import ppo_loss

from tests.support.tiny_verl import composed
from verl_s2d.objectives.token_credit import anchored_log_probs
from verl_s2d.signals.in_verl.joint_loss import WEIGHTS, JointLoss
from verl_s2d.signals.in_verl.verdicts import correct_rollouts

PROMPTS, RESPONSES, V = (2, 1, 3), (4, 2, 3), 11


def jagged(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


def batch(seed: int = 0, *, weights: float | None = 0.3) -> TensorDict:
    """Rollouts of three lengths, one token of which is not the student's."""
    generator = torch.Generator().manual_seed(seed)

    def values(scale: float = 1.0) -> torch.Tensor:
        rows = [scale * torch.randn(n, generator=generator, dtype=torch.float64) for n in RESPONSES]
        return jagged(rows)

    masks = [torch.ones(n, dtype=torch.long) for n in RESPONSES]
    masks[0][2] = 0
    fields = {
        "prompts": jagged([torch.zeros(n, dtype=torch.long) for n in PROMPTS]),
        "responses": jagged([torch.randint(V, (n,), generator=generator) for n in RESPONSES]),
        "response_mask": jagged(masks),
        "old_log_probs": values(0.1) - 2.0,
        "ref_log_prob": values(0.1) - 1.5,
        "advantages": values(),
    }
    if weights is not None:
        fields[WEIGHTS] = jagged([weights * mask.double() for mask in masks])
    data = TensorDict(fields, batch_size=len(PROMPTS))
    tokens = int(sum(mask.sum() for mask in masks))
    for name, value in {"dp_size": 1, "batch_num_tokens": tokens, "global_batch_size": len(PROMPTS)}.items():
        data.set_non_tensor(name, value)
    return data


def losses(mode: str = "token-mean") -> tuple[partial, JointLoss]:
    config = omega_conf_to_dataclass(composed(f"actor_rollout_ref.actor.loss_agg_mode={mode}").actor_rollout_ref.actor)
    policy = partial(ppo_loss, config=config)
    return policy, JointLoss(policy)


def output(logits: torch.Tensor, data: TensorDict) -> dict[str, torch.Tensor]:
    """Compute what an engine hands to the loss: the log-prob of each next token of the packed batch."""
    packed, start = [], 0
    for prompt, response in zip(PROMPTS, data["responses"].unbind(), strict=True):
        row = logits[start : start + prompt + len(response)].log_softmax(-1)
        log_probs = row.new_zeros(len(row))
        predicted = row[prompt - 1 : -1].gather(1, response[:, None])[:, 0]
        packed.append(torch.cat([log_probs[: prompt - 1], predicted, log_probs[-1:]]))
        start += len(row)
    return {"log_probs": torch.cat(packed)}


LOGITS = torch.randn(sum(PROMPTS) + sum(RESPONSES), V, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean"])
def test_the_gradient_is_that_of_finite_differences(mode):
    data, (_, joint) = batch(), losses(mode)
    logits = LOGITS.clone().requires_grad_()
    loss, metrics = joint(output(logits, data), data)
    loss.backward()
    assert metrics["distillation_loss"].aggregate() > 0
    step = 1e-6
    for place in torch.randperm(LOGITS.numel(), generator=torch.Generator().manual_seed(2))[:60].tolist():
        moved = LOGITS.repeat(2, 1, 1)
        moved.view(2, -1)[:, place] += torch.tensor([step, -step])
        up, down = (joint(output(m, data), data)[0] for m in moved)
        assert logits.grad.view(-1)[place].item() == pytest.approx(((up - down) / (2 * step)).item(), abs=1e-7)


def test_the_term_is_half_the_square_of_the_log_ratio_weighed_and_averaged_over_response_tokens():
    data, (policy, joint) = batch(weights=0.3), losses()
    logits = LOGITS.clone().requires_grad_()
    found = output(logits, data)
    term = joint(found, data)[0] - policy(model_output=found, data=data)[0]
    squares, start = [], 0
    for prompt, response, teacher, mask in zip(
        PROMPTS, *(data[name].unbind() for name in ("responses", "ref_log_prob", "response_mask")), strict=True
    ):
        own = found["log_probs"][start + prompt - 1 : start + prompt + len(response) - 1]
        squares.append((0.5 * (own - teacher) ** 2)[mask.bool()])
        start += prompt + len(response)
    torch.testing.assert_close(term, 0.3 * torch.cat(squares).mean())


def test_a_coefficient_of_zero_and_no_weights_are_grpo():
    (policy, joint) = losses()
    plain = batch(weights=None)
    expected = policy(model_output=output(LOGITS, plain), data=plain)
    for data in (plain, batch(weights=0.0)):
        logits = LOGITS.clone().requires_grad_()
        loss, metrics = joint(output(logits, data), data)
        assert torch.equal(loss, expected[0]) and expected[1].keys() <= metrics.keys()
        loss.backward()
        again = LOGITS.clone().requires_grad_()
        policy(model_output=output(again, plain), data=plain)[0].backward()
        assert torch.equal(logits.grad, again.grad)


def test_only_full_marks_are_correct():
    scores = torch.tensor([[0.0, 1.0], [0.0, 0.5], [0.0, 0.0], [0.0, -1.0], [1.0, 0.0]])
    assert correct_rollouts(scores).tolist() == [True, False, False, False, True]


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_an_anchor_in_place_of_the_old_policy_is_trrds_loss(alpha):
    """Token by token: max(-A r, -A clip(r, 0.8, 1.2)), r = exp(lp - anchor), and at most -3 A for A < 0; 1 is GRPO."""
    data, (policy, _) = batch(weights=None), losses()
    teachers = data["ref_log_prob"].unbind()
    anchors = [
        anchored_log_probs(old, teacher, torch.ones_like(old), alpha)
        for old, teacher in zip(data["old_log_probs"].unbind(), teachers, strict=True)
    ]
    expected, start = [], 0
    found = output(LOGITS, data)
    for prompt, anchor, advantage, mask in zip(
        PROMPTS, anchors, *(data[name].unbind() for name in ("advantages", "response_mask")), strict=True
    ):
        own = found["log_probs"][start + prompt - 1 : start + prompt + len(anchor) - 1]
        ratio = torch.exp(own - anchor)
        loss = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.2))
        loss = torch.where(advantage < 0, torch.minimum(loss, -3 * advantage), loss)
        expected.append(loss[mask.bool()])
        start += prompt + len(anchor)
    grpo = policy(model_output=found, data=data)[0]
    data["old_log_probs"] = jagged(anchors)
    loss = policy(model_output=found, data=data)[0]
    torch.testing.assert_close(loss, torch.cat(expected).mean())
    assert torch.equal(loss, grpo) == (alpha == 1.0)
