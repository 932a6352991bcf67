"""Make random Qwen3 checkpoints with a word-level tokenizer: real files for checks that must not use the hub.

python -m verl_s2d.gpu_check.tiny_model OUT [key=value of Shape ...]
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path

# verl picks its Qwen token builder by model type; it needs "\n" and <|im_end|> to be one token each.
WORDS = ["<pad>", "<|im_end|>", "\n", "+", "=", *map(str, range(20))]
_SECONDS = 300


@dataclass(frozen=True)
class Shape:
    """Size of a checkpoint.

    Attributes:
        tokens: number of words in the tokenizer: WORDS, then fillers.
        vocabulary: rows of the embedding; those at or above `tokens` are padding, as in published Qwen3 models.
        context: longest sequence.
        spread: standard deviation of the initial weights.
    """

    seed: int = 0
    hidden: int = 32
    layers: int = 2
    heads: int = 2
    head_dim: int = 32
    tokens: int = len(WORDS)
    vocabulary: int = len(WORDS)
    context: int = 128
    tied: bool = False
    spread: float = 0.1


def write_tokenizer(directory: Path, words: list[str] = WORDS) -> None:
    """Write a word-level fast tokenizer whose chat template renders the bare content."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<pad>")
    tokenizer.add_tokens(AddedToken("\n", normalized=False))
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(directory)


def write_model(directory: Path, shape: Shape, words: list[str] | None = None) -> Path:
    """Write a randomly initialised float32 Qwen3 checkpoint with its tokenizer; returns the directory."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    words = [*WORDS, *(f"w{number}" for number in range(len(WORDS), shape.tokens))] if words is None else words
    torch.manual_seed(shape.seed)
    config = Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=2 * shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=max(1, shape.heads // 2),
        head_dim=shape.head_dim,
        max_position_embeddings=shape.context,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=None,
        tie_word_embeddings=shape.tied,
        initializer_range=shape.spread,
    )
    Qwen3ForCausalLM(config).to(torch.float32).save_pretrained(directory)
    write_tokenizer(Path(directory), words)
    return Path(directory)


def made(directory: Path, shape: Shape) -> Path:
    """Return the checkpoint of this shape below `directory`; a subprocess makes it if it is missing.

    The caller must not import torch yet, because some parts check the order of imports and CUDA's first use.
    """
    name = "-".join(f"{field.name}{getattr(shape, field.name)}" for field in fields(Shape))
    out = directory / "models" / name
    if not (out / "tokenizer.json").exists():
        settings = [f"{field.name}={getattr(shape, field.name)}" for field in fields(Shape)]
        command = [sys.executable, "-P", "-m", "verl_s2d.gpu_check.tiny_model", str(out), *settings]
        subprocess.run(command, check=True, timeout=_SECONDS)
    return out


def main(out: str, *settings: str) -> None:
    """Write the checkpoint that the command line describes."""
    kinds = {field.name: type(field.default) for field in fields(Shape)}
    given = dict(setting.split("=", 1) for setting in settings)
    values = {name: value == "True" if kinds[name] is bool else kinds[name](value) for name, value in given.items()}
    write_model(Path(out), Shape(**values))


if __name__ == "__main__":
    main(*sys.argv[1:])
