"""Define the plots of a report, in order; a stage's metrics name the plots that show them."""

from __future__ import annotations

from verl_s2d.metrics import metric_logs
from verl_s2d.metrics.metric_table import Panel

_RL, _DISTILLATION, _REST = (
    "Reinforcement learning (stages 1 and 3)",
    "Distillation (stages 2a and 2b)",
    "Responses and updates in training",
)

SCORE = Panel("score", _RL, "Score", "mean score of the verifier")
POLICY_KL = Panel("policy-kl", _RL, "KL to the reference policy", "nats per token")
RL_LOSS = Panel("rl-loss", _RL, "Loss", "policy loss")
RL_ENTROPY = Panel("rl-entropy", _RL, "Entropy of the policy", "nats per token")
FORWARD_KL = Panel("forward-kl", _DISTILLATION, "2a: KL(teacher || student)", "nats per token")
REVERSE_KL = Panel("reverse-kl", _DISTILLATION, "2b: KL(student || teacher)", "nats per token")
JSD = Panel("jsd", _DISTILLATION, "2b: generalised JSD", "nats per token")
AGREEMENT = Panel("agreement", _DISTILLATION, "Agreement with the teacher", "share", from_zero=False)
MASS = Panel("mass", _DISTILLATION, "Mass on the other's top k", "probability", from_zero=False)
OVERLAP = Panel("overlap", _DISTILLATION, "Overlap of the top k by quarter of the response", "share", from_zero=False)
KL_BY_SET = Panel("kl-by-set", _DISTILLATION, "2b: KL(student || teacher) by set of ids", "nats per token")
TRAVEL = Panel("travel", _DISTILLATION, "Distance from the stage's start", "sqrt of nats per token")
PARSE_RATE = Panel("parse-rate", _DISTILLATION, "2b: finished responses with an answer", "share")
DISTILLATION_LOSS = Panel("distillation-loss", _DISTILLATION, "Loss", "loss")
DISTILLATION_ENTROPY = Panel("distillation-entropy", _DISTILLATION, "Entropies", "nats per token")
LENGTH = Panel("length", _REST, "Response length", "tokens")
TRUNCATED = Panel(metric_logs.TRUNCATED, _REST, "Truncated responses", "share")
GRAD_NORM = Panel("grad-norm", _REST, "Gradient norm", "norm before clipping")

PANELS = (
    SCORE,
    POLICY_KL,
    RL_LOSS,
    RL_ENTROPY,
    FORWARD_KL,
    REVERSE_KL,
    JSD,
    AGREEMENT,
    MASS,
    OVERLAP,
    KL_BY_SET,
    TRAVEL,
    PARSE_RATE,
    DISTILLATION_LOSS,
    DISTILLATION_ENTROPY,
    LENGTH,
    TRUNCATED,
    GRAD_NORM,
)
