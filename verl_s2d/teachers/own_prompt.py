"""Let a frozen model read another prompt than the student, before the same response.

    student   [prompt of the student          ][response]
    teacher   [longer or shorter own prompt ][response]

A prompt's last token and all but the last of the response predict the response's tokens, so rows are aligned from the
end of each sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from tensordict import TensorDict

from verl_s2d.objectives.logits import GivenLogits, LinearLogits

OWN_PROMPTS = "s2d_teacher_prompts"
"""Field of a batch: nested ids of the teacher's prompts."""


def with_own_prompts(data: TensorDict) -> TensorDict:
    """Return a batch of the teacher's prompts and the student's responses, in verl's packed form.

    Args:
        data: verl's batch with nested input_ids, position_ids, responses and OWN_PROMPTS; not changed.
    """
    prompts, responses = data[OWN_PROMPTS], data["responses"]
    sequences = [torch.cat(pair) for pair in zip(prompts.unbind(), responses.unbind(), strict=True)]
    own = data.clone(recurse=False)
    own["prompts"], own["input_ids"] = prompts, _nested(sequences)
    own["position_ids"] = _nested([torch.arange(len(row), device=row.device) for row in sequences])
    return own


def aligned(
    logits: GivenLogits | LinearLogits,
    student: TensorDict,
    teacher: TensorDict,
    lay: Callable[[torch.Tensor], torch.Tensor],
    *,
    padded: bool,
) -> GivenLogits | LinearLogits:
    """Move the teacher's rows to the student's rows that predict the same tokens of the response.

    Args:
        logits: of the teacher's micro-batch, row by row.
        student, teacher: the micro-batch, and what `with_own_prompts` made of it.
        lay: moves values of the student's packed tokens to the rows of its logits.
        padded: the teacher's engine pads sequences instead of packing them.

    Returns:
        Logits with the student's rows. Rows that predict no token of the response hold another row's values.
    """
    ends, own_ends = student["input_ids"].offsets()[1:], teacher["input_ids"].offsets()[1:]
    starts = teacher["input_ids"].offsets()[:-1]
    lengths = student["responses"].offsets().diff()
    rows = torch.zeros(int(ends[-1]), dtype=torch.float64, device=ends.device)
    longest = int((own_ends - starts).max())
    for place, (end, start, own_end, length) in enumerate(zip(ends, starts, own_ends, lengths, strict=True)):
        first = place * longest if padded else int(start)
        last = first + int(own_end - start)
        # The row before the response predicts its first token.
        rows[end - length - 1 : end] = torch.arange(last - int(length) - 1, last).to(rows)
    index = lay(rows.to(_values(logits).device)).long()
    if isinstance(logits, LinearLogits):
        return replace(logits, hidden=logits.hidden[index])
    return GivenLogits(logits.logits[index])


def _values(logits: GivenLogits | LinearLogits) -> torch.Tensor:
    return logits.hidden if isinstance(logits, LinearLogits) else logits.logits


def _nested(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)
