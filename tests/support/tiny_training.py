"""Plain-PyTorch preparation of the checkpoints of tests/support/tiny.py, and what they say."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.support.tiny import write_tokenizer


def sharpen(model: Path, factor: float) -> Path:
    """Multiply the logits of a checkpoint, in place: a random model is nearly uniform and has nothing to teach."""
    network = _load(model)
    with torch.no_grad():
        network.lm_head.weight.mul_(factor)
    network.save_pretrained(model)
    return model


def prune(model: Path, out: Path) -> Path:
    """Write a student without the checkpoint's last layer: another architecture, a similar distribution."""
    network = _load(model)
    network.model.layers = network.model.layers[:-1]
    network.config.num_hidden_layers -= 1
    network.config.layer_types = network.config.layer_types[:-1]
    network.save_pretrained(out)
    write_tokenizer(out)
    return out


def plain_log_probs(network: torch.nn.Module, prompt: torch.Tensor, response: torch.Tensor) -> torch.Tensor:
    """(response, vocabulary) log-probs of each next token of the response."""
    ids = torch.cat([prompt, response])
    with torch.no_grad():
        log_probs = network(ids[None]).logits[0].log_softmax(-1)
    return log_probs[len(prompt) - 1 : -1]


def _load(model: Path) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
