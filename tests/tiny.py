"""Tiny real artefacts for tests: a Qwen3 checkpoint with a word-level tokenizer, and problems in verl's columns."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

# verl picks its Qwen token builder by model type; it needs "\n" and <|im_end|> to be one token each.
WORDS = ["<pad>", "<|im_end|>", "\n", "+", "=", *map(str, range(20))]


def write_tokenizer(directory: Path, words: list[str] = WORDS) -> None:
    """A word-level fast tokenizer whose chat template renders the bare content."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<pad>")
    tokenizer.add_tokens(AddedToken("\n", normalized=False))
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(directory)


def write_model(
    directory: Path,
    *,
    seed: int = 0,
    hidden: int = 32,
    layers: int = 2,
    words: list[str] = WORDS,
    tied: bool = False,
) -> Path:
    """A randomly initialised Qwen3 checkpoint of a few thousand parameters, with its tokenizer."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(words),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=128,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=None,
        tie_word_embeddings=tied,
        initializer_range=0.1,
    )
    Qwen3ForCausalLM(config).to(torch.float32).save_pretrained(directory)
    write_tokenizer(Path(directory), words)
    return Path(directory)


def write_problems(path: Path, count: int, *, seed: int = 0) -> Path:
    """Distinct sums `a + b =` with their answers, in verl's columns."""
    pairs = random.Random(seed).sample([(a, b) for a in range(10) for b in range(10)], count)
    rows = [
        {
            "prompt": [{"role": "user", "content": f"{a} + {b} ="}],
            "data_source": "sums",
            "reward_model": {"style": "rule", "ground_truth": str(a + b)},
            "extra_info": {"index": f"sum-{a}-{b}"},
        }
        for a, b in pairs
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def score_sum(data_source: str, solution_str: str, ground_truth: str, extra_info=None, **_: object) -> float:
    """1.0 when the last word of the response is the sum."""
    words = solution_str.replace("<|im_end|>", "").split()
    return float(bool(words) and words[-1] == ground_truth)
