"""Composed teachers (`composed`, `delta`, `veto`), sampled and exact, against float64 over a small vocabulary."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch

from verl_s2d.errors import UserError
from verl_s2d.objectives.divergence import divergence
from verl_s2d.objectives.logits import GivenLogits
from verl_s2d.signals.composed_teacher import Composed, ExactComposed
from verl_s2d.signals.delta import Delta, ExactDelta
from verl_s2d.signals.exopd import ExactExOPD, ExOPD
from verl_s2d.signals.sampled import Sampled
from verl_s2d.signals.signal_registry import read_signal
from verl_s2d.signals.veto import Veto
from verl_s2d.stages.opd.config import read_opd_settings

SIZE = 12
ROLES = ("student", "teacher", "base", "code", "code_base")
TERMS = {"teacher": 1.25, "code": 0.5, "base": -0.75}
PAIRS = {"teacher": "base", "code": "code_base"}
THIRDS = dict.fromkeys(("teacher", "base", "code"), 0.3333333)
# Sampled and exact form, and the weights c_i of log q = sum_i c_i log p_i - log Z, `self` for the student's own.
FORMS = [
    (Composed(terms=TERMS), ExactComposed(terms=TERMS), TERMS),
    (Composed(terms=THIRDS), ExactComposed(terms=THIRDS), dict.fromkeys(THIRDS, 1 / 3)),
    (Delta(), ExactDelta(), {"student": 1, "teacher": 1, "base": -1}),
    (Delta(pairs=PAIRS), ExactDelta(pairs=PAIRS), dict(zip(ROLES, (1, 1, -1, 1, -1), strict=True))),
    (Composed(terms={"self": 0.25, "teacher": 1, "base": -0.25}), None, {"self": 0.25, "teacher": 1, "base": -0.25}),
    (Veto(self_weight=0.4), None, {"teacher": 1, "self": 0.4}),
]


def logits(seed: int) -> torch.Tensor:
    return 1.5 * torch.randn(1, SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def models() -> dict[str, torch.Tensor]:
    """(1, SIZE) logits of each role in one state."""
    return {role: logits(seed) for seed, role in enumerate(ROLES, 1)}


def composed(weights: dict[str, float], of_role: dict[str, torch.Tensor]) -> torch.Tensor:
    """Log-probs of q, normalised over the vocabulary."""
    return sum(c * of_role[role].log_softmax(-1) for role, c in weights.items()).log_softmax(-1)


def reverse_kl(student: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    log_s = student.log_softmax(-1)
    return (log_s.exp() * (log_s - log_q)).sum(-1)


def slopes(student: torch.Tensor, log_q: torch.Tensor, step: float = 1e-6) -> torch.Tensor:
    """(SIZE,) finite differences of KL(S, q) by the student's logits, q held fixed."""
    units = step * torch.eye(SIZE, dtype=torch.float64)
    return torch.cat([(reverse_kl(student + e, log_q) - reverse_kl(student - e, log_q)) / (2 * step) for e in units])


def of_every_token(signal: Sampled, student: torch.Tensor, of_role: dict[str, torch.Tensor]) -> torch.Tensor:
    """(SIZE,) A of each token that one state's sample could be."""
    frozen = {role: of_role[role].log_softmax(-1) for role in signal.asks}
    return signal.advantages(student.log_softmax(-1), frozen, torch.ones(1, SIZE))[0].double()


@pytest.mark.parametrize(("sampled", "exact", "weights"), FORMS, ids=lambda value: getattr(value, "type", ""))
def test_the_mean_over_all_tokens_is_the_finite_difference_of_the_kl_to_the_composed_distribution(
    sampled, exact, weights
):
    student, of_role = logits(0), models()
    log_q = composed(weights, of_role | {"self": student})
    expected = slopes(student, log_q)

    advantages, p = of_every_token(sampled, student, of_role), student.softmax(-1)[0]
    # Gradient of -E_y[A(y) log p(y)] with A held fixed; advantages are float32.
    gradient = -p * (advantages - (p * advantages).sum())
    torch.testing.assert_close(gradient, expected, atol=5e-6, rtol=0)
    ratio = advantages - (log_q - student.log_softmax(-1))[0]
    torch.testing.assert_close(ratio, ratio[:1].expand(SIZE), atol=2e-5, rtol=0)

    if exact is not None:
        z = student.clone().requires_grad_()
        frozen = {role: GivenLogits(of_role[role]) for role in exact.asks}
        found = divergence(z, exact.teacher(frozen), **exact.divergence_options())
        found.divergence.sum().backward()
        torch.testing.assert_close(found.divergence, reverse_kl(student, log_q), atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(z.grad[0], expected, atol=1e-8, rtol=0)


def test_a_delta_of_nothing_leaves_the_initial_student():
    of_role = models()
    of_role["base"] = of_role["teacher"]
    frozen = {role: GivenLogits(of_role[role]) for role in ExactDelta().asks}
    found = divergence(of_role["student"], ExactDelta().teacher(frozen), **ExactDelta().divergence_options())
    torch.testing.assert_close(found.divergence, torch.zeros(1).double(), atol=1e-14, rtol=0)
    advantages = of_every_token(Delta(), of_role["student"], of_role)
    torch.testing.assert_close(advantages, torch.zeros(SIZE).double(), atol=1e-6, rtol=0)


def test_one_term_of_weight_one_is_bitwise_the_plain_signal_and_two_are_exopd():
    student, *frozen = (logits(seed).log_softmax(-1).float() for seed in range(3))
    frozen = dict(zip(("teacher", "base"), frozen, strict=True))
    mask = torch.arange(SIZE)[None] % 3

    def found(signal: Sampled) -> torch.Tensor:
        return signal.advantages(student, {role: frozen[role] for role in signal.asks}, mask)

    assert torch.equal(found(Composed(terms={"teacher": 1}, whiten=True)), found(Sampled(whiten=True)))
    two = Composed(terms={"base": -0.25, "teacher": 1.25}, beta=0.5)
    assert torch.equal(found(two), found(ExOPD(beta=0.5, **{"lambda": 1.25})))
    given = {role: GivenLogits(values) for role, values in frozen.items()}
    exact = ExactComposed(terms={"base": -0.25, "teacher": 1.25})
    for a, b in zip(
        divergence(student, exact.teacher(given)),
        divergence(student, ExactExOPD(**{"lambda": 1.25}).teacher(given)),
        strict=True,
    ):
        assert torch.equal(a.nan_to_num(), b.nan_to_num())


def test_a_permutation_of_terms_or_pairs_changes_nothing():
    for signal, terms in ((Composed, TERMS), (ExactComposed, TERMS)):
        made = [signal(terms=dict(order)) for order in permutations(terms.items())]
        assert {(tuple(each.asks), tuple(each.weights.items())) for each in made} == {
            (("teacher", "base", "code"), (("teacher", 1.25), ("base", -0.75), ("code", 0.5)))
        }
    assert Delta(pairs=dict(reversed(PAIRS.items()))).weights == Delta(pairs=PAIRS).weights
    assert list(Delta(pairs=dict(reversed(PAIRS.items()))).asks) == list(Delta(pairs=PAIRS).asks)


def test_self_scales_the_advantage_and_a_veto_is_no_scale():
    student, of_role = logits(0), models()
    plain = of_every_token(Sampled(), student, of_role)
    with_self = of_every_token(Composed(terms={"self": 0.2, "teacher": 0.8}), student, of_role)
    torch.testing.assert_close(with_self, 0.8 * plain, atol=1e-6, rtol=1e-6)
    veto = of_every_token(Veto(self_weight=0.2), student, of_role)
    assert (veto / plain).std() > 0.1
    # The fixed point: the teacher sharpened to the power 1 / (1 - c).
    sharpened = (of_role["teacher"].log_softmax(-1) / 0.8).log_softmax(-1)
    at_rest = of_every_token(Veto(self_weight=0.2), sharpened, of_role)
    torch.testing.assert_close(at_rest, at_rest[:1].expand(SIZE), atol=1e-5, rtol=0)


def test_a_baseline_is_one_number_for_the_whole_batch():
    """It leaves what tokens have against one another, and the mean over the response tokens is zero."""
    student, of_role = logits(0).log_softmax(-1), models()
    mask = torch.arange(SIZE)[None] % 4 != 0
    for signal in (Sampled, Delta, Veto):
        frozen = {role: of_role[role].log_softmax(-1) for role in signal().asks}
        plain, centred = (signal(baseline=b).advantages(student, frozen, mask) for b in ("none", "batch_mean"))
        assert abs(centred[mask].mean()) < 1e-6 < abs(plain[mask].mean())
        shift = (plain - centred)[mask]
        torch.testing.assert_close(shift, shift[:1].expand(shift.shape), atol=1e-6, rtol=0)


def test_a_key_added_later_is_written_only_where_it_says_something():
    assert set(Sampled().model_dump()) == {"type", "clip", "beta", "whiten"}
    assert Sampled(baseline="batch_mean").model_dump()["baseline"] == "batch_mean"
    assert "tail_floor" not in ExOPD().model_dump(by_alias=True)
    written = ExOPD(tail_floor=0.01).model_dump(by_alias=True)
    assert read_signal(written, default="", key="s2d.signal") == ExOPD(tail_floor=0.01)


@pytest.mark.parametrize(
    ("section", "key", "words"),
    [
        ({"type": "composed"}, "terms", "required"),
        ({"type": "composed", "terms": {}}, "terms", "a frozen model"),
        ({"type": "composed", "terms": {"self": 1}}, "terms", "a frozen model"),
        ({"type": "composed", "terms": {"teacher": 1.25, "base": -0.2}}, "terms", "1.05"),
        ({"type": "composed_exact", "terms": {"teacher": 1, "base": 2e-6}}, "terms", "1.000002"),
        ({"type": "composed", "terms": {"teacher": 4.5, "base": -3.5}}, "terms.teacher", "At most 4"),
        ({"type": "composed", "terms": {"teacher": -4.5, "base": 3.5}}, "terms.teacher", "At least -4"),
        ({"type": "composed", "terms": {"teacher": 1, "base": 0}}, "terms.base", "no effect"),
        ({"type": "composed", "terms": {"a.b": 1}}, "terms.a.b", "letters"),
        ({"type": "composed_exact", "terms": {"self": 0.5, "teacher": 0.5}}, "terms.self", "{'teacher': 1.0}"),
        ({"type": "delta", "pairs": {}}, "pairs", "stay as it is"),
        ({"type": "delta", "pairs": {"teacher": "student"}}, "initial", "twice"),
        ({"type": "delta_exact", "pairs": {"teacher": "base", "code": "base"}}, "pairs", "base appears twice"),
        ({"type": "delta", "pairs": {"teacher": "self"}}, "pairs", "no frozen model"),
        ({"type": "veto", "self_weight": 1}, "self_weight", "Less than 1"),
        ({"type": "composed", "baseline": "state_mean", "terms": {"a": 1}}, "baseline", "signal composed_exact"),
        ({"type": "delta", "baseline": "state_mean"}, "baseline", "signal delta_exact"),
        ({"type": "exopd", "baseline": "state_mean"}, "baseline", "signal exopd_exact"),
        ({"type": "sampled", "baseline": "state_mean"}, "baseline", "signal reverse_kl"),
        ({"type": "veto", "baseline": "state_mean"}, "baseline", "Use batch_mean."),
        ({"type": "sampled", "baseline": "batch_mean", "whiten": True}, "baseline", "Whitening"),
        ({"type": "exopd", "lambda": 1, "tail_floor": 0.01}, "tail_floor", "above 1"),
        ({"type": "exopd", "tail_floor": 0.5}, "tail_floor", "Less than 0.5"),
        ({"type": "veto", "terms": {"teacher": 1}}, "terms", "composed, composed_exact"),
    ],
)
def test_what_is_no_composition_is_refused_with_its_key(section, key, words):
    with pytest.raises(UserError) as caught:
        read_signal(section, default="", key="s2d.signal")
    assert caught.value.key == f"s2d.signal.{key}" and caught.value.remedy
    assert words in str(caught.value)


def test_a_command_names_a_model_for_each_term_and_reads_itself_back():
    section = {
        "signal": {"type": "composed", "terms": {"code": 0.5, "self": -0.5, "teacher": 1}},
        "teacher": {"path": "t"},
        "models": {"code": {"path": "c"}},
    }
    settings = read_opd_settings(section)
    assert list(settings.models) == ["teacher", "code"]
    assert read_opd_settings(settings.written()) == settings
    with pytest.raises(UserError) as caught:
        read_opd_settings(section | {"models": {}})
    assert caught.value.key == "s2d.models.code.path"
    with pytest.raises(UserError) as caught:
        read_opd_settings(section | {"models": {"code": {"path": "c"}, "base": {"path": "b"}}})
    assert caught.value.key == "s2d.models.base" and "teacher, code" in caught.value.remedy
