"""The quickstart's mediocre start: a tiny Qwen3 model that has seen demonstrations of mixed quality.

    python pretrain.py --out DIR role=teacher|student [steps=N] [seed=0]

A demonstration has the right running totals, or totals that ignore the minus signs, or one total too few; so the model
knows several styles of which one is right, which is what reinforcement learning can then sort out. The teacher has seen
more good ones, is one layer deeper and is trained for longer: what it can still learn from labels is which style is
right, rather than how to add.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tasks import HIGHEST, LOWEST, entries
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    get_cosine_schedule_with_warmup,
)

from verl_s2d import arguments
from verl_s2d.errors import UserError

PAD, END = "<pad>", "<|im_end|>"
# verl's rollout picks its Qwen rules by the model type; they need END and a line break to be one token each.
VOCABULARY = [PAD, END, "\n", "+", "-", "=", *map(str, range(LOWEST, HIGHEST + 1))]
TOKEN = {token: number for number, token in enumerate(VOCABULARY)}

BATCH = 64
LEARNING_RATE = 3e-3
WARMUP_STEPS = 50
SLIP = 0.03
"""Probability that a written total is off by up to three."""


@dataclass(frozen=True)
class Role:
    """Differences between the teacher and the student.

    Attributes:
        styles: shares of demonstrations that are right, ignore the minus signs, stop one total too early.
    """

    layers: int
    steps: int
    styles: tuple[float, float, float]


ROLES = {
    "teacher": Role(layers=3, steps=2500, styles=(0.34, 0.33, 0.33)),
    "student": Role(layers=2, steps=800, styles=(0.15, 0.45, 0.40)),
}


@dataclass(frozen=True)
class Options:
    """Command line of this script."""

    out: str
    role: str
    steps: int | None = None
    seed: int = 0


def demonstration(expression: str, styles: tuple[float, float, float], rng: random.Random) -> list[str]:
    """Running totals in one of the three styles, as words, without the end token."""
    words = expression.split()
    ignores_minus, stops_early = (
        rng.choices(("right", "no minus", "short"), styles)[0] == s for s in ("no minus", "short")
    )
    total, totals = int(words[0]), []
    for sign, term in zip(words[1::2], words[2::2], strict=True):
        total += int(term) if sign == "+" or ignores_minus else -int(term)
        if rng.random() < SLIP:
            total += rng.choice((-3, -2, -1, 1, 2, 3))
        totals.append(str(min(max(total, LOWEST), HIGHEST)))
    return totals[:-1] if stops_early else totals


def batches(role: Role, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Token ids and labels (B, T), padded on the right; only the response is learned."""
    rng = random.Random(seed)
    source = entries("pretraining", seed + 1)
    while True:
        rows, targets = [], []
        for _ in range(BATCH):
            expression = next(source)["metadata"]["expression"]
            prompt = [TOKEN[w] for w in (*expression.split(), "=")]
            response = [TOKEN[w] for w in (*demonstration(expression, role.styles, rng), END)]
            rows.append(prompt + response)
            targets.append([-100] * len(prompt) + response)
        length = max(map(len, rows))
        yield (
            torch.tensor([r + [TOKEN[PAD]] * (length - len(r)) for r in rows]),
            torch.tensor([t + [-100] * (length - len(t)) for t in targets]),
        )


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per integer; the chat template renders the bare content."""
    core = Tokenizer(models.WordLevel(TOKEN, unk_token=PAD))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, pad_token=PAD)
    tokenizer.add_tokens(AddedToken("\n", normalized=False))
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    return tokenizer


def build_model(layers: int) -> Qwen3ForCausalLM:
    """About 0.12 million parameters a layer, and an embedding for every token but no more.

    verl bans padded embeddings in the rollout, not in the actor, whose log-probs would then differ throughout.
    """
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(VOCABULARY),
            hidden_size=96,
            intermediate_size=288,
            num_hidden_layers=layers,
            num_attention_heads=3,
            num_key_value_heads=3,
            head_dim=32,
            max_position_embeddings=64,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=TOKEN[END],
            pad_token_id=TOKEN[PAD],
        )
    ).float()


def main(options: Options) -> None:
    role = ROLES.get(options.role)
    if role is None:
        raise UserError("Unknown role.", key="role", value=options.role, remedy=f"Use one of {', '.join(ROLES)}.")
    steps = role.steps if options.steps is None else options.steps
    torch.manual_seed(options.seed)
    model = build_model(role.layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    # Without the decay a teacher of 1500 steps ends at an avg@16 of 17 % instead of 28 %.
    schedule = get_cosine_schedule_with_warmup(optimizer, WARMUP_STEPS, steps)

    started = time.perf_counter()
    for step, (ids, labels) in zip(range(1, steps + 1), batches(role, options.seed), strict=False):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step == steps:
            seconds = time.perf_counter() - started
            print(f"pretrain {options.role}: step {step}/{steps}, loss {loss.item():.3f}, {seconds:.0f} s", flush=True)

    out = Path(options.out)
    build_tokenizer().save_pretrained(out)
    model.generation_config = GenerationConfig(eos_token_id=TOKEN[END], pad_token_id=TOKEN[PAD])
    model.save_pretrained(out)


if __name__ == "__main__":
    arguments.run(main, Options)
