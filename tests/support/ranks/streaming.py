"""One rank of a teacher that FSDP2's CPUOffloadPolicy keeps in host memory: tests/unit/teachers/test_streaming.py."""

from __future__ import annotations

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from transformers import Qwen3Config, Qwen3ForCausalLM
from verl.utils.fsdp_utils import apply_fsdp2

from tests.support.ranks import group as ranks
from verl_s2d.teachers.lm_head_hook import HeadSeam

LAYERS = 3


def streamed(rank: int, world: int) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 24, "hidden_size": 32, "intermediate_size": 64, "head_dim": 16}
    heads = {"num_hidden_layers": LAYERS, "num_attention_heads": 2, "num_key_value_heads": 1}
    teacher = Qwen3ForCausalLM(Qwen3Config(tie_word_embeddings=False, **sizes, **heads)).requires_grad_(False)
    ids = torch.randint(24, (1, 9))
    with torch.no_grad():
        expected = teacher(ids).logits
    # As verl's engine does for a forward-only model, but for the pinning of memory, which needs an accelerator.
    settings = {
        "mesh": init_device_mesh("cpu", (world,)),
        "mp_policy": MixedPrecisionPolicy(param_dtype=torch.float32),
        "offload_policy": CPUOffloadPolicy(pin_memory=False),
        "reshard_after_forward": True,
    }
    apply_fsdp2(teacher, settings, {})

    def gathered() -> set[str]:
        return {name for name, parameter in teacher.named_parameters() if not isinstance(parameter, DTensor)}

    during: list[set[str]] = []
    for layer in teacher.model.layers:
        layer.register_forward_hook(lambda *_: during.append(gathered()))

    def at_head(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        during.append(gathered())
        return hidden @ weight.T

    with torch.no_grad(), HeadSeam(teacher).using(at_head):
        found = teacher(ids).logits
    torch.testing.assert_close(found, expected)
    assert len(during) == LAYERS + 1
    for place, names in enumerate(during[:-1]):
        whole = {name.split(".")[2] for name in names if name.startswith("model.layers.")}
        assert whole <= {str(place)}, f"while layer {place} was at work, {names} were whole"
    # Where the head is asked for, and the student compared, nothing else of size is there.
    assert during[-1] == {"lm_head.weight", "model.norm.weight"}, during[-1]
    assert gathered() <= {"model.norm.weight"}


if __name__ == "__main__":
    ranks.work(lambda world: {"streamed": streamed})
