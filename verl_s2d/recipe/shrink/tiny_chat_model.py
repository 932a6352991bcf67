"""Make a tiny Qwen3 or Llama that has learned to put some digit in a box, and nothing else.

    python tiny_chat_model.py --out DIR family=qwen3|llama layers=N [hidden=64] [steps=60] [seed=0]

So a tenth of its answers is right, and reinforcement learning has something to compare. Tokens are bytes and what
byte-pair encoding makes of the problems; the chat templates have the marks of the real ones.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from verl_s2d import arguments
from verl_s2d.data.templates import TEMPLATES
from verl_s2d.errors import UserError
from verl_s2d.recipe.shrink.digit_sums import problems

PAD = "<pad>"
BATCH, LEARNING_RATE = 32, 3e-3


@dataclass(frozen=True)
class Family:
    """Differences of an architecture family.

    Attributes:
        end: what ends a turn, and generation.
        template: of a chat.
    """

    config: type
    model: type
    end: str
    marks: tuple[str, ...]
    template: str


FAMILIES = {
    "qwen3": Family(
        Qwen3Config,
        Qwen3ForCausalLM,
        "<|im_end|>",
        ("<|im_start|>", "<think>", "</think>"),
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
    ),
    "llama": Family(
        LlamaConfig,
        LlamaForCausalLM,
        "<|eot_id|>",
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday Date: {{ date_string }}<|eot_id|>"
        "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}<|eot_id|>"
        "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
    ),
}


@dataclass(frozen=True)
class Options:
    """Command line of this script."""

    out: str
    family: str
    layers: int
    hidden: int = 64
    steps: int = 60
    seed: int = 0


def build_tokenizer(family: Family) -> PreTrainedTokenizerFast:
    """Bytes, merges learned from prompts, and the family's marks."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    texts = [TEMPLATES["boxed"].apply(text) for text, _ in islice(problems(), 100)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False))
    core.add_special_tokens([AddedToken(mark, normalized=False) for mark in (PAD, family.end, *family.marks)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=family.end, pad_token=PAD)
    tokenizer.chat_template = family.template
    return tokenizer


def build_model(family: Family, options: Options, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """An embedding for every token but no more: verl bans padded ones in the rollout, not in the actor."""
    return family.model(
        family.config(
            vocab_size=len(tokenizer),
            hidden_size=options.hidden,
            intermediate_size=3 * options.hidden,
            num_hidden_layers=options.layers,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=32,
            max_position_embeddings=1024,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    ).float()


def batch(tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels (B, T), padded on the right; only the response is learned."""
    rows, targets = [], []
    for text, _ in rng.sample(list(islice(problems(), 100)), BATCH):
        messages = [{"role": "user", "content": TEMPLATES["boxed"].apply(text)}]
        settings = {"enable_thinking": False, "date_string": "26 Jul 2024"}
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False, **settings)
        response = tokenizer.encode(rf"\boxed{{{rng.randrange(10)}}}{tokenizer.eos_token}", add_special_tokens=False)
        rows.append([*prompt, *response])
        targets.append([-100] * len(prompt) + response)
    longest = max(map(len, rows))
    return (
        torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in rows]),
        torch.tensor([row + [-100] * (longest - len(row)) for row in targets]),
    )


def main(options: Options) -> None:
    family = FAMILIES.get(options.family)
    if family is None:
        raise UserError(
            "Unknown family.", key="family", value=options.family, remedy=f"Use one of {', '.join(FAMILIES)}."
        )
    torch.manual_seed(options.seed)
    rng, tokenizer = random.Random(options.seed), build_tokenizer(family)
    model = build_model(family, options, tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    for step in range(1, options.steps + 1):
        ids, labels = batch(tokenizer, rng)
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 20 == 0:
            print(f"model: step {step}/{options.steps}, loss {loss.item():.3f}", flush=True)
    tokenizer.save_pretrained(options.out)
    end = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model.generation_config = GenerationConfig(**end)
    model.save_pretrained(Path(options.out))


if __name__ == "__main__":
    arguments.run(main, Options)
