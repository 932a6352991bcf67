"""One rank of a group that divides a vocabulary, run as a process of its own: writes how each case ended to a file.

python -m tests.support.ranks.vocab_parallel RANK WORLD DIRECTORY

Every rank makes the whole problem from a seed, works it out alone, and then again in its group with its own shard.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product

import torch
import torch.distributed as dist

from tests.support.ranks.group import work
from tests.support.ranks.vocab_parallel_problems import (
    LAYOUTS,
    gradients,
    leaves_of,
    normal,
    problem,
    same,
    same_everywhere,
)
from verl_s2d.objectives.divergence import divergence
from verl_s2d.objectives.logits import ComposedLogits, GivenLogits, LinearLogits
from verl_s2d.objectives.vocabulary import VocabularyShard

OBJECTIVES = ("forward_kl", "reverse_kl", "jsd")
SIDES = ("linear", "given")
# Options that do not meet each other: every combination above takes the next of each list.
HINTS = ("none", "right", "scaled", "one wrong", "wrong")
MASKS = (False, True, False)
CAPS = (None, 3.0)
TEMPERATURES = (1.0, 0.7, 1.0)


def combination(rank: int, world: int, place: int, layout: str, sides: tuple[str, str], objective: str, name: str):
    """Values, by-products, and the gradients of all three differentiable results, one by one and together."""
    dtype = getattr(torch, name)
    case = problem(world, layout, sides, dtype, CAPS[place % len(CAPS)], TEMPERATURES[place % len(TEMPERATURES)])
    upstream = [normal(len(case.ids), seed=50 + n, dtype=dtype) for n in range(3)]
    weights = {
        "none": None,
        "right": upstream[0],
        "scaled": -3 * upstream[0],
        "one wrong": torch.cat([upstream[0][:-1], upstream[0][-1:] + 1]),
        "wrong": normal(len(case.ids), seed=60, dtype=dtype),
    }[HINTS[place % len(HINTS)]]
    mask = (torch.arange(len(case.ids)) % 3 != 1) if MASKS[place % len(MASKS)] else None
    options = {"objective": objective, "beta": 0.3, "weights": weights, "mask": mask}
    (expected, leaves), (result, mine) = case.whole(**options), case.shard(rank, chunk_tokens=4, **options)
    wanted = [case.own(rank, gradients(expected, leaves, *upstream[:n])) for n in (1, 3)]
    made = [gradients(result, mine, *upstream[:n]) for n in (1, 3)]
    check = same_everywhere([*result, *(made[0][:1] + made[1][:1] if sides[0] == "linear" else ())])
    same(list(result), list(expected))
    for ours, theirs in zip(made, wanted, strict=True):
        same(ours, theirs)
    check()


def no_head_gradient(rank: int, world: int, hinted: bool) -> None:
    """A frozen head: hidden states alone get a gradient, the whole one."""
    case = problem(world)
    weights = normal(len(case.ids), seed=50) if hinted else None
    expected, leaves = case.whole(weights=weights, sampled_ids=None)
    hidden = torch.autograd.grad(expected.divergence.sum(), leaves[0])
    mine = slice(rank * case.sizes[0], (rank + 1) * case.sizes[0])
    leaf = case.student.hidden.clone().requires_grad_()
    frozen = replace(case.student, hidden=leaf, head=case.student.head[mine], bias=case.student.bias[mine])
    teacher = replace(case.teacher, head=case.teacher.head[mine], bias=case.teacher.bias[mine])
    shard = VocabularyShard(None, mine.start)
    result = divergence(frozen, teacher, weights=weights, vocab_size=case.real, shard=shard)
    result.divergence.sum().backward()
    same([*result, leaf.grad], [*expected, *hidden])
    assert frozen.head.grad is None and frozen.bias.grad is None


def no_token(rank: int, world: int, sides: tuple[str, str], tokens: int) -> None:
    """A batch of nothing, and one of which nothing counts."""
    case = problem(world, "teacher padded further", sides)
    if tokens == 0:
        empty = [
            side[:0] if isinstance(side, torch.Tensor) else replace(side, hidden=side.hidden[:0])
            for side in (case.student, case.teacher)
        ]
        case = replace(case, student=empty[0], teacher=empty[1], ids=case.ids[:0])
    result, leaves = case.shard(rank, mask=torch.zeros(len(case.ids)))
    found = torch.autograd.grad([result.divergence.sum(), result.student_entropy.sum()], leaves)
    assert result.divergence.shape == (len(case.ids),) and (result.divergence == 0).all()
    assert all((gradient == 0).all() for gradient in found)


def not_a_number(rank: int, world: int, objective: str) -> None:
    """A NaN in any shard of either side shows in that token's results and gradient on every rank, in no other's."""
    checks = []
    for broken, side in product(range(world), ("student", "teacher")):
        case = problem(world, "even", ("given", "given"))
        logits = getattr(case, side).clone()
        logits[1, broken * case.sizes[0] + 2] = torch.nan
        result, leaves = replace(case, **{side: logits}).shard(rank, objective=objective)
        checks.append((result.divergence, *gradients(result, leaves, torch.ones(len(case.ids)).double())))
    for value, gradient in checks:
        assert value.isnan().tolist() == [row == 1 for row in range(len(value))]
        assert gradient.isnan().any(-1).tolist() == [row == 1 for row in range(len(value))]


def ruled_out(rank: int, world: int, sides: tuple[str, str], objective: str) -> None:
    """Ids that one side or both rule out, each in one shard alone, the teacher's in shards laid out otherwise."""
    case = problem(world, "teacher padded further", sides)
    logits = []
    for place, side in enumerate((case.student, case.teacher)):
        out = torch.tensor([0, 3 + place])  # 0 by both, 3 by the student, 4 by the teacher
        if isinstance(side, torch.Tensor):
            logits.append(side.index_fill(1, out, -torch.inf))
        else:
            logits.append(replace(side, bias=side.bias.index_fill(0, out, -torch.inf)))
    case = replace(case, student=logits[0], teacher=logits[1])
    (expected, leaves), (result, mine) = case.whole(objective=objective), case.shard(rank, objective=objective)
    upstream = torch.linspace(1, 2, len(case.ids)).double()
    ours, theirs = gradients(result, mine, upstream), case.own(rank, gradients(expected, leaves, upstream))
    same([*result, *ours], [*expected, *theirs])
    assert expected.divergence.isinf().all() == (objective != "jsd")


def extreme(rank: int, world: int, objective: str) -> None:
    """Logits of +-1e4, float32, their tops in different shards."""
    case = problem(world, sides=("given", "given"), dtype=torch.float32)
    logits = [1e4 * normal(*case.student.shape, seed=seed, dtype=torch.float32).sign() for seed in range(2)]
    case = replace(case, student=logits[0], teacher=logits[1])
    (expected, leaves), (result, mine) = case.whole(objective=objective), case.shard(rank, objective=objective)
    upstream = torch.linspace(-1, 2, len(case.ids))
    ours, theirs = gradients(result, mine, upstream), case.own(rank, gradients(expected, leaves, upstream))
    same([*result, *ours], [*expected, *theirs])
    assert all(tensor.isfinite().all() for tensor in ours)


def ties(rank: int, world: int) -> None:
    """Tops that tie across shards: agreement is 0 or 1, and the same as of the whole vocabulary."""
    case = problem(world, "even", ("given", "given"))
    student, teacher = torch.zeros(3, 24).double(), torch.zeros(3, 24).double()
    student[1, 23] = teacher[1, 0] = teacher[1, 23] = 1
    student[2, 1], teacher[2, 22] = 1, 1
    case = replace(case, student=student, teacher=teacher, ids=case.ids[:3])
    (expected, _), (result, _) = case.whole(), case.shard(rank)
    assert result.top1_agreement.tolist() == expected.top1_agreement.tolist() == [1, 1, 0]


def bfloat16(rank: int, world: int, objective: str) -> None:
    """bf16 hidden states and heads, multiplied into float32 on every rank."""
    case = problem(world, "teacher padded further", dtype=torch.bfloat16)
    weights = torch.linspace(0.1, 1, len(case.ids))
    options = {"objective": objective, "weights": weights}
    (expected, leaves), (result, mine) = case.whole(**options), case.shard(rank, **options)
    ours, theirs = gradients(result, mine, weights), case.own(rank, gradients(expected, leaves, weights))
    same(list(result), list(expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)


def composed_teacher(rank: int, world: int, layout: str, objective: str) -> None:
    """Two teachers that ranks divide alike, one of hidden states and a head, one of logits, weighted 1.5 and -0.5."""
    case = problem(world, layout)
    first = case.teacher
    second = 2 * normal(len(case.ids), first.head.shape[0], seed=70)

    def composed(ids: slice) -> ComposedLogits:
        linear = replace(first, head=first.head[ids], bias=first.bias[ids])
        return ComposedLogits((linear, GivenLogits(second[:, ids])), (1.5, -0.5))

    weights = torch.linspace(0.1, 1, len(case.ids)).double()
    options = {"objective": objective, "beta": 0.3, "weights": weights}
    expected, leaves = replace(case, teacher=composed(slice(None))).whole(**options)
    mine, teachers = (slice(rank * size, (rank + 1) * size) for size in case.sizes)
    student, own = leaves_of(case.student, mine)
    shard = VocabularyShard(dist.group.WORLD, mine.start, teachers.start)
    options |= {"vocab_size": case.real, "sampled_ids": case.ids, "chunk_tokens": 2}
    result = divergence(student, composed(teachers), shard=shard, **options)
    written_out = 1.5 * (first.hidden @ first.head.T + first.bias) - 0.5 * second
    plain, _ = replace(case, teacher=written_out).whole(objective=objective, beta=0.3, weights=weights)
    ours, theirs = gradients(result, own, weights), case.own(rank, gradients(expected, leaves, weights))
    same([*result, *ours], [*expected, *theirs])
    same(list(result), list(plain))


def backwards_order(rank: int, world: int) -> None:
    """The teacher's shards in the opposite order of ranks."""
    case = problem(world, "even")
    mine, teachers = (slice(place * case.sizes[0], (place + 1) * case.sizes[0]) for place in (rank, world - 1 - rank))
    student, leaves = leaves_of(case.student, mine)
    teacher, _ = leaves_of(case.teacher, teachers)
    shard = VocabularyShard(dist.group.WORLD, mine.start, teachers.start)
    result = divergence(student, teacher, vocab_size=24, shard=shard, sampled_ids=case.ids, chunk_tokens=2)
    expected, whole = case.whole()
    upstream = torch.ones(len(case.ids)).double()
    ours, theirs = gradients(result, leaves, upstream), case.own(rank, gradients(expected, whole, upstream))
    same([*result, *ours], [*expected, *theirs])


def exchanged_only_when_divided_otherwise(rank: int, world: int) -> None:
    """All ranks take the same decision, also those whose own ranges are equal."""
    for layout, sizes in LAYOUTS.items():
        real, student, teacher = sizes(world)
        shard = VocabularyShard(None, rank * student, rank * teacher)
        columns, exchange, masked = shard.divide(5, student, teacher, real, rank == 1, torch.device("cpu"))
        assert masked
        assert columns == max(0, min(real - rank * student, student))
        assert (exchange is None) == (student == teacher), layout


def refused(rank: int, world: int, difference: str, message: str) -> None:
    """Check that an error on one rank raises on all of them, and that the next call works again."""
    case, last = problem(world, "even"), rank == world - 1
    size = case.sizes[0]
    mine = slice(rank * size, (rank + 1) * size)
    student, teacher = leaves_of(case.student, mine)[0], leaves_of(case.teacher, mine)[0]
    first, teacher_first, options = mine.start, None, {"vocab_size": 24}
    if difference == "tokens":
        options["mask"] = torch.ones(len(case.ids)) if last else torch.eye(len(case.ids))[0]
    elif last and difference == "vocab_size":
        options["vocab_size"] = 23
    elif last and difference == "gap":
        first += 1
    elif last and difference == "teacher":
        teacher_first = first - 1
    elif last and difference == "small":
        teacher = replace(teacher, head=teacher.head[1:], bias=teacher.bias[1:])
    try:
        divergence(student, teacher, shard=VocabularyShard(None, first, teacher_first), **options)
    except ValueError as error:
        found = str(error)
    else:
        found = "nothing was raised"
    case.shard(rank)
    assert message in found


def megatron_cross_entropy(rank: int, world: int, nothing: float, linear: bool) -> None:
    """Forward KL from a one-hot teacher is Megatron's own vocab-parallel cross entropy, in value and gradients."""
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import copy_to_tensor_model_parallel_region, vocab_parallel_cross_entropy
    from megatron.core.tensor_parallel.utils import VocabUtility

    if not parallel_state.is_initialized():
        parallel_state.initialize_model_parallel(tensor_model_parallel_size=world)
    vocabulary, tokens = 12 * world, 7
    first, end = VocabUtility.vocab_range_from_per_partition_vocab_size(12, rank, world)
    target = torch.tensor([0, 11, 12, vocabulary - 1, 5, 12 * world - 12, 3])
    teacher = torch.full((tokens, vocabulary), nothing).scatter_(1, target[:, None], 0.0)[:, first:end]
    hidden = normal(tokens, 8, seed=0, dtype=torch.float32).requires_grad_()
    head = normal(vocabulary, 8, seed=1, dtype=torch.float32)[first:end].clone().requires_grad_()
    logits = (hidden @ head.T).detach().requires_grad_()
    leaves = [hidden, head] if linear else [logits]
    upstream = torch.linspace(-1, 2.5, tokens)  # never zero, which would mask
    # (sequence, batch, ids here); it writes over its input.
    theirs = copy_to_tensor_model_parallel_region(hidden) @ head.T if linear else logits
    theirs = vocab_parallel_cross_entropy(theirs.clone().unsqueeze(1), target[:, None])[:, 0]
    expected = torch.autograd.grad(theirs, leaves, upstream)
    shard = VocabularyShard(parallel_state.get_tensor_model_parallel_group(), first)
    student = LinearLogits(hidden, head) if linear else logits
    for weights in (None, upstream):
        result = divergence(student, teacher, weights=weights, shard=shard, vocab_size=vocabulary, sampled_ids=target)
        ours = torch.autograd.grad(result.divergence, leaves, upstream)
        same([result.divergence, -result.student_log_prob, *ours], [theirs, theirs, *expected])


def cases(world: int) -> dict[str, Callable[[int, int], None]]:
    """Name -> what to run on every rank, in this order."""
    found = {}
    sides = list(product(SIDES, SIDES))
    names = [*product(("float64",), LAYOUTS, sides, OBJECTIVES)]
    names += product(("float32",), ("last shard partly padding", "teacher padded further"), sides, OBJECTIVES)
    for place, (dtype, layout, (student, teacher), objective) in enumerate(names):
        name = f"{objective}, {student} student, {teacher} teacher, {dtype}: {layout}"
        found[name] = partial(
            combination, place=place, layout=layout, sides=(student, teacher), objective=objective, name=dtype
        )
    for hinted in (False, True):
        found[f"no head gradient, weights {'known' if hinted else 'unknown'}"] = partial(
            no_head_gradient, hinted=hinted
        )
    for student, teacher in sides:
        found[f"no token: {student} student, {teacher} teacher"] = partial(no_token, sides=(student, teacher), tokens=0)
        found[f"no token counts: {student} student, {teacher} teacher"] = partial(
            no_token, sides=(student, teacher), tokens=1
        )
    for objective in OBJECTIVES:
        found[f"not a number: {objective}"] = partial(not_a_number, objective=objective)
        for student, teacher in sides:
            found[f"ids ruled out: {objective}, {student} student, {teacher} teacher"] = partial(
                ruled_out, sides=(student, teacher), objective=objective
            )
        found[f"extreme: {objective}"] = partial(extreme, objective=objective)
        found[f"bfloat16: {objective}"] = partial(bfloat16, objective=objective)
        for layout in ("even", "last shard partly padding", "teacher padded further"):
            found[f"composed teacher: {objective}, {layout}"] = partial(
                composed_teacher, layout=layout, objective=objective
            )
    found["ties"] = ties
    found["teacher's shards in the opposite order"] = backwards_order
    found["exchanged only when divided otherwise"] = exchanged_only_when_divided_otherwise
    for difference, message in {
        "tokens": "tokens differs between the ranks",
        "vocab_size": "vocab_size differs between the ranks",
        "gap": "the student's shards hold ids",
        "teacher": "the teacher's shards hold ids",
        "small": "the teacher's shards hold ids",
    }.items():
        found[f"refused on every rank: {difference}"] = partial(refused, difference=difference, message=message)
    if world == 2:
        for nothing, linear in product((float("-inf"), -1e9), (False, True)):
            found[f"megatron's cross entropy: {'linear' if linear else 'given'}, elsewhere {nothing}"] = partial(
                megatron_cross_entropy, nothing=nothing, linear=linear
            )
    return found


if __name__ == "__main__":
    work(cases)
