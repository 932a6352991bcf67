"""One rank of a Megatron group that writes and reads checkpoints as verl does, run as a process of its own.

python -m tests.support.ranks.megatron_checkpoint RANK WORLD DIRECTORY

In DIRECTORY/source lies a Hugging Face model. verl's checkpoint manager and the bridge are real, and megatron-core's
distributed checkpoints and optimizer; layers are megatron-core's with Transformer Engine's fused norms written out.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.tensor_parallel import ColumnParallelLinear, gather_from_tensor_model_parallel_region
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
from megatron.core.transformer import ModuleSpec
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.utils import make_sharded_tensor_for_checkpoint
from omegaconf import OmegaConf
from transformers import AutoConfig, AutoTokenizer
from verl.models.mcore.mbridge import AutoBridge
from verl.utils.checkpoint.megatron_checkpoint_manager import MegatronCheckpointManager
from verl.utils.megatron.optimizer import get_megatron_optimizer, init_megatron_optim_config
from verl.workers.config import McoreCheckpointConfig, McoreOptimizerConfig

from tests.support.ranks.group import work
from tests.support.ranks.megatron_engine import Attention, Norm, use_cpu

STEP, STEPS_TRAINED = "global_step_3", 3
IDS = [[3, 4, 5, 6, 7, 8, 9, 10]]
# As the workflow's stages ask for.
CONTENTS = ["model", "optimizer", "extra", "hf_model"]


class NormedLinear(ColumnParallelLinear):
    """A linear layer with the norm before it: Transformer Engine's in plain torch, under its parameters' names."""

    def __init__(self, input_size: int, output_size: int, *, config, **settings: object):
        super().__init__(input_size, output_size, config=config, **settings)
        self.layer_norm_weight = torch.nn.Parameter(torch.ones(input_size))
        self.layer_norm_weight.sequence_parallel = config.sequence_parallel

    def forward(self, hidden: torch.Tensor):
        """(tokens, batch, width) as ColumnParallelLinear."""
        return super().forward(
            torch.nn.functional.rms_norm(
                hidden, hidden.shape[-1:], self.layer_norm_weight, self.config.layernorm_epsilon
            )
        )

    def sharded_state_dict(self, prefix="", sharded_offsets=(), metadata=None):
        """The norm is the same on every rank."""
        found, name = super().sharded_state_dict(prefix, sharded_offsets, metadata), f"{prefix}layer_norm_weight"
        return found | {
            name: make_sharded_tensor_for_checkpoint(self.layer_norm_weight, name, prepend_offsets=sharded_offsets)
        }


def model(bridge, hf_config) -> GPTModel:
    """The bridge's configuration as megatron-core's model, with fused norms."""
    layer = get_gpt_layer_local_spec(normalization="RMSNorm", qk_layernorm=True)
    parts = layer.submodules
    parts.input_layernorm = parts.pre_mlp_layernorm = IdentityOp
    attention = parts.self_attention.submodules
    attention.linear_qkv = parts.mlp.submodules.linear_fc1 = NormedLinear
    attention.q_layernorm = attention.k_layernorm = Norm
    attention.core_attention = ModuleSpec(Attention, params={"mixes": True})
    stages, stage = (
        parallel_state.get_pipeline_model_parallel_world_size(),
        parallel_state.get_pipeline_model_parallel_rank(),
    )
    return GPTModel(
        bridge.config,
        TransformerBlockSubmodules([layer] * (hf_config.num_hidden_layers // stages), Norm),
        vocab_size=hf_config.vocab_size,
        max_sequence_length=hf_config.max_position_embeddings,
        parallel_output=True,
        share_embeddings_and_output_weights=hf_config.tie_word_embeddings,
        position_embedding_type="rope",
        rotary_base=hf_config.rope_parameters["rope_theta"],
        pre_process=stage == 0,
        post_process=stage == stages - 1,
    )


def manager(directory: Path, seed: int) -> MegatronCheckpointManager:
    """verl's, for a model that has random weights, as its engine makes it."""
    torch.manual_seed(seed)
    source = directory / "source"
    config = AutoConfig.from_pretrained(source)
    bridge = AutoBridge.from_config(config, dtype=torch.float32)
    bridge.set_extra_args(
        use_cpu_initialization=True,
        gradient_accumulation_fusion=False,
        masked_softmax_fusion=False,
        bias_dropout_fusion=False,
        apply_rope_fusion=False,
        sequence_parallel=False,
    )
    module = DistributedDataParallel(bridge.config, DistributedDataParallelConfig(), model(bridge, config))
    optimizer = get_megatron_optimizer(
        [module],
        init_megatron_optim_config(
            McoreOptimizerConfig(lr=1e-2, clip_grad=0.0), use_distributed_optimizer=False, fp16=False, bf16=False
        ),
    )
    return MegatronCheckpointManager(
        config=OmegaConf.create(
            {
                "model": {"path": str(source)},
                "megatron": {
                    "dist_ckpt_optim_fully_reshardable": False,
                    "distrib_optim_fully_reshardable_mem_efficient": False,
                },
            }
        ),
        checkpoint_config=McoreCheckpointConfig(save_contents=CONTENTS, load_contents=CONTENTS),
        model_config=config,
        transformer_config=bridge.config,
        role="actor",
        model=[module],
        arch=config.architectures[0],
        hf_config=config,
        param_dtype=torch.float32,
        share_embeddings_and_output_weights=config.tie_word_embeddings,
        processing_class=AutoTokenizer.from_pretrained(source),
        optimizer=optimizer,
        optimizer_scheduler=None,
        use_distributed_optimizer=False,
        bridge=bridge,
    )


def logits(module: torch.nn.Module) -> torch.Tensor:
    """(tokens, V) of IDS."""
    with torch.no_grad():
        shards = module(torch.tensor(IDS), torch.arange(len(IDS[0]))[None], None)
    return gather_from_tensor_model_parallel_region(shards)[0]


def train(made: MegatronCheckpointManager) -> None:
    """A few real steps, so that weights and optimizer are those of no other checkpoint."""
    (module,), optimizer = made.model, made.optimizer
    for _ in range(STEPS_TRAINED):
        # Both, as verl does: a step leaves its gradients with the parameters, to which the next ones would be added.
        optimizer.zero_grad()
        module.zero_grad_buffer()
        module(torch.tensor(IDS), torch.arange(len(IDS[0]))[None], None).square().mean().backward()
        # Norms of queries and keys see a rank's heads only: their gradients are added up here.
        finalize_model_grads([module])
        optimizer.step()


def save(rank: int, world: int, directory: Path) -> None:
    """The source's weights through the bridge give the source's logits; trained ones are saved."""
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=world)
    get_cuda_rng_tracker().set_states({"model-parallel-rng": torch.get_rng_state()})
    made = manager(directory, seed=1)
    made.bridge.load_weights(made.model, str(directory / "source"))
    before, source = logits(made.model[0]), torch.load(directory / "logits.pt")
    assert torch.allclose(before, source, atol=1e-5), (before - source).abs().max()
    train(made)
    after = logits(made.model[0])
    assert (after - before).abs().max() > 1e-2
    made.save_checkpoint(str(directory / "checkpoints" / STEP / "actor"), global_step=STEPS_TRAINED)
    if rank == 0:
        torch.save(after, directory / "trained.pt")


def resume(rank: int, world: int, directory: Path) -> None:
    """Read a checkpoint again: weights and optimizer state are those saved, and steps from there are the same."""
    saved, fresh = (manager(directory, seed=seed) for seed in (1, 2))
    saved.bridge.load_weights(saved.model, str(directory / "source"))
    train(saved)
    fresh.load_checkpoint(str(directory / "checkpoints" / STEP / "actor"))
    found, trained = logits(fresh.model[0]), torch.load(directory / "trained.pt")
    assert torch.allclose(found, trained, atol=1e-5), (found - trained).abs().max()
    states = [optimizer_state(one) for one in (saved, fresh)]
    assert all(states[0]) and len(states[0]) == len(states[1])
    for expected, restored in zip(*states, strict=True):
        for name, value in expected.items():
            assert torch.allclose(torch.as_tensor(value), torch.as_tensor(restored[name]), atol=1e-6), name
    for one in (saved, fresh):
        train(one)
    later, expected = logits(fresh.model[0]), logits(saved.model[0])
    assert torch.equal(later, expected), (later - expected).abs().max()
    assert (later - found).abs().max() > 1e-2


def optimizer_state(made: MegatronCheckpointManager) -> list[dict[str, torch.Tensor]]:
    """Collect the optimizer's state of each parameter, in the optimizer's order."""
    return [
        one.optimizer.state[parameter]
        for one in made.optimizer.chained_optimizers
        for group in one.optimizer.param_groups
        for parameter in group["params"]
    ]


if __name__ == "__main__":
    use_cpu()
    here = Path(sys.argv[3])
    work(lambda world: {case.__name__: partial(case, directory=here) for case in (save, resume)})
