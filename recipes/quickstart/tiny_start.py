"""Pre-train a tiny Qwen3 model on demonstrations of mixed quality, in a vocabulary of a recipe's own.

A recipe's script brings roles, vocabulary and demonstrations, and names this file in `uses:`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    get_cosine_schedule_with_warmup,
)

from verl_s2d.errors import UserError

PAD, END = "<pad>", "<|im_end|>"
FIRST = (PAD, END, "\n")
"""Tokens that every vocabulary begins with. verl's rollout picks its Qwen rules by the model type; they need END and a
line break to be one token each."""
BATCH = 64
LEARNING_RATE = 3e-3
WARMUP_STEPS = 50
SLIP = 0.03
"""Probability that a demonstrated number is off by a little."""
Styles = tuple[float, float, float]
"""Shares of demonstrations in three styles, of which the first is right."""
Demonstration = tuple[Sequence[str], Sequence[str]]
"""Words of a prompt and of a response, without the end token."""


@dataclass(frozen=True)
class Role:
    """Differences between the teacher and the student."""

    layers: int
    steps: int
    styles: Styles


@dataclass(frozen=True)
class Options:
    """Command line of a recipe's script."""

    out: str
    role: str
    steps: int | None = None
    seed: int = 0


def build_tokenizer(vocabulary: Sequence[str]) -> PreTrainedTokenizerFast:
    """Make a tokenizer of words between spaces, and of tokens that contain white space themselves.

    Decoded tokens are joined by spaces. The chat template renders the bare content.
    """
    core = Tokenizer(models.WordLevel({token: number for number, token in enumerate(vocabulary)}, unk_token=PAD))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, pad_token=PAD)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in vocabulary if token.split() != [token]])
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    return tokenizer


def build_model(layers: int, vocabulary: Sequence[str]) -> Qwen3ForCausalLM:
    """Make a model of about 0.12 million parameters a layer, with an embedding for every token but no more.

    verl bans padded embeddings in the rollout, not in the actor, whose log-probs would then differ throughout.
    """
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(vocabulary),
            hidden_size=96,
            intermediate_size=288,
            num_hidden_layers=layers,
            num_attention_heads=3,
            num_key_value_heads=3,
            head_dim=32,
            max_position_embeddings=64,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=vocabulary.index(END),
            pad_token_id=vocabulary.index(PAD),
        )
    ).float()


def batches(
    demonstrations: Iterator[Demonstration], vocabulary: Sequence[str]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield token ids and labels (B, T), padded on the right; only the response is learned."""
    token = {text: number for number, text in enumerate(vocabulary)}
    while True:
        rows, targets = [], []
        for _ in range(BATCH):
            words, answer = next(demonstrations)
            prompt, response = [token[word] for word in words], [token[word] for word in (*answer, END)]
            rows.append(prompt + response)
            targets.append([-100] * len(prompt) + response)
        length = max(map(len, rows))
        yield (
            torch.tensor([row + [token[PAD]] * (length - len(row)) for row in rows]),
            torch.tensor([target + [-100] * (length - len(target)) for target in targets]),
        )


def write_start(
    options: Options,
    roles: Mapping[str, Role],
    vocabulary: Sequence[str],
    demonstrations: Callable[[Styles, int], Iterator[Demonstration]],
) -> None:
    """Pre-train the model of a role and write it with its tokenizer to `options.out`.

    Args:
        demonstrations: endless demonstrations in these shares of styles, from this seed.

    Raises:
        UserError: the role is unknown.
    """
    role = roles.get(options.role)
    if role is None:
        raise UserError("Unknown role.", key="role", value=options.role, remedy=f"Use one of {', '.join(roles)}.")
    steps = role.steps if options.steps is None else options.steps
    torch.manual_seed(options.seed)
    model = build_model(role.layers, vocabulary)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    # Without the decay a teacher of 1500 steps ends at an avg@16 of 17 % in the quickstart instead of 28 %.
    schedule = get_cosine_schedule_with_warmup(optimizer, WARMUP_STEPS, steps)
    source, started = batches(demonstrations(role.styles, options.seed), vocabulary), time.perf_counter()
    for step, (ids, labels) in zip(range(1, steps + 1), source, strict=False):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step == steps:
            seconds = time.perf_counter() - started
            print(f"pretrain {options.role}: step {step}/{steps}, loss {loss.item():.3f}, {seconds:.0f} s", flush=True)

    tokenizer = build_tokenizer(vocabulary)
    tokenizer.save_pretrained(Path(options.out))
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model.generation_config = GenerationConfig(**ends)
    model.save_pretrained(Path(options.out))
