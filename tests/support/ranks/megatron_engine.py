"""verl's Megatron engine with tiny models of megatron-core's own parts, on a CPU.

The engine's methods are verl's. Its initialisation, which loads a checkpoint through Megatron-Bridge onto a GPU, is not
run: what it leaves behind is put there by hand. The attention kernel, Transformer Engine's, is replaced by torch's.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from itertools import pairwise
from types import SimpleNamespace

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.tensor_parallel.random import CudaRNGStatesTracker
from megatron.core.transformer import ModuleSpec, TransformerConfig
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from torch.overrides import TorchFunctionMode
from verl.utils.megatron_utils import register_megatron_training_hooks
from verl.workers.config import McoreEngineConfig
from verl.workers.engine.megatron.transformer_impl import MegatronEngineWithLMHead

LAYERS, LONGEST = 2, 64


def use_cpu() -> None:
    """Give megatron-core the device there is, wherever it makes a buffer on the current CUDA device or on "cuda".

    Its CUDA random states, one per parallel rank, are for dropout, which these models do without.
    """
    torch.cuda.current_device = lambda: "cpu"
    torch.cuda.synchronize = lambda *_: None
    CudaRNGStatesTracker.fork = lambda *_: nullcontext()
    _OnCPU().__enter__()


class _OnCPU(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.cuda:
            return args[0]
        kwargs = {name: value for name, value in (kwargs or {}).items() if name != "pin_memory"}
        return function(*args, **(kwargs | {"device": "cpu"} if kwargs.get("device") == "cuda" else kwargs))


class Attention(torch.nn.Module):
    """Causal attention in plain torch, on padded rows and on packed sequences, where Transformer Engine's would be.

    Args:
        mixes: False leaves every token to itself: then a context-parallel rank needs nothing from the others.
    """

    def __init__(self, config: TransformerConfig, mixes: bool, **_: object):
        super().__init__()
        self._mixes = mixes

    def forward(self, query, key, value, attention_mask=None, packed_seq_params=None, **_: object) -> torch.Tensor:
        """(tokens, batch, heads, width) or packed (tokens, heads, width) -> (tokens, batch or none, all heads)."""
        if not self._mixes:
            return value.flatten(-2)
        if packed_seq_params is None:
            # Padding follows a row's tokens: none of them attends to it.
            return self._causal(query, key, value).flatten(-2)
        ends = packed_seq_params.cu_seqlens_q.tolist()
        parts = [
            self._causal(*(x[first:end, None] for x in (query, key, value)))[:, 0] for first, end in pairwise(ends)
        ]
        return torch.cat(parts).flatten(-2)

    @staticmethod
    def _causal(*qkv: torch.Tensor) -> torch.Tensor:
        rows = (x.permute(1, 2, 0, 3) for x in qkv)
        attention = torch.nn.functional.scaled_dot_product_attention
        return attention(*rows, is_causal=True, enable_gqa=True).permute(2, 0, 1, 3)


class Norm(torch.nn.RMSNorm):
    """Apex's or Transformer Engine's: megatron-core's own refuses sequence parallelism."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float):
        super().__init__(hidden_size, eps)
        # Each rank sees a part of the sequence: Megatron adds the weight's gradients up where this is set.
        self.weight.sequence_parallel = config.sequence_parallel


def gpt(
    width: int,
    vocabulary: int,
    seed: int,
    *,
    mixes: bool = True,
    sequence: bool = False,
    per_token: bool = False,
    tied: bool = False,
) -> GPTModel:
    """A float32 GPT, or this rank's stage of one.

    The weights of a whole one depend on the seed alone, not on how they are divided: each rank draws all of them.

    Args:
        width: hidden size.
        vocabulary: padded number of ids, over all ranks.
        mixes: see Attention.
        sequence: Megatron's sequence parallelism.
        per_token: Megatron's calculate_per_token_loss.
        tied: output and input embeddings are one.
    """
    torch.manual_seed(seed)
    stages, stage = (
        parallel_state.get_pipeline_model_parallel_world_size(),
        parallel_state.get_pipeline_model_parallel_rank(),
    )
    config = TransformerConfig(
        num_layers=LAYERS,
        hidden_size=width,
        num_attention_heads=4,
        ffn_hidden_size=2 * width,
        normalization="RMSNorm",
        add_bias_linear=True,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        init_method_std=0.3,
        use_cpu_initialization=True,
        tensor_model_parallel_size=parallel_state.get_tensor_model_parallel_world_size(),
        context_parallel_size=parallel_state.get_context_parallel_world_size(),
        pipeline_model_parallel_size=stages,
        # As verl has them.
        pipeline_dtype=torch.float32,
        variable_seq_lengths=True,
        moe_token_dispatcher_type="alltoall",
        batch_p2p_comm=False,
        sequence_parallel=sequence,
        calculate_per_token_loss=per_token,
        # Fusions are CUDA kernels.
        gradient_accumulation_fusion=False,
        masked_softmax_fusion=False,
        bias_dropout_fusion=False,
        apply_rope_fusion=False,
    )
    layer = get_gpt_layer_local_spec(normalization="RMSNorm")
    layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = Norm
    layer.submodules.self_attention.submodules.core_attention = ModuleSpec(Attention, params={"mixes": mixes})
    return GPTModel(
        config,
        TransformerBlockSubmodules([layer] * (LAYERS // stages), Norm),
        vocab_size=vocabulary,
        max_sequence_length=LONGEST,
        parallel_output=True,
        share_embeddings_and_output_weights=tied,
        pre_process=stage == 0,
        post_process=stage == stages - 1,
        position_embedding_type="rope",
    )


def engine(
    model: GPTModel, data_format: str, *, forward_only: bool, pads_alike: bool = True
) -> MegatronEngineWithLMHead:
    """verl's engine around a model, as `initialize` leaves it; a student's gradients are kept where it would step.

    Args:
        data_format: thd or bshd.
        forward_only: a teacher's engine.
        pads_alike: all micro-batches to one length; bshd only.
    """
    made = object.__new__(MegatronEngineWithLMHead)
    made.engine_config = McoreEngineConfig(
        tensor_model_parallel_size=parallel_state.get_tensor_model_parallel_world_size(),
        context_parallel_size=parallel_state.get_context_parallel_world_size(),
        pipeline_model_parallel_size=parallel_state.get_pipeline_model_parallel_world_size(),
        use_remove_padding=data_format == "thd",
        pad_bshd_to_minibatch_max=pads_alike,
        forward_only=forward_only,
    )
    made.initialize = lambda: None
    made.model_config = SimpleNamespace(
        hf_config=SimpleNamespace(architectures=["GPT"]),
        mtp=SimpleNamespace(enable=False, enable_train=False),
        tokenizer=SimpleNamespace(pad_token_id=0),
    )
    made.tf_config, made.enable_routing_replay = model.config, False
    made._is_offload_param = made._is_offload_optimizer = False
    made.mode, made.optimizer, made.module = None, None, [model]
    if not forward_only:
        made.module = [DistributedDataParallel(model.config, DistributedDataParallelConfig(), model)]
        made.optimizer = GradientRecorder(model)
        register_megatron_training_hooks(made.module, made.optimizer)
    return made


def name_in_whole(name: str, model: GPTModel) -> str:
    """Translate a pipeline stage's parameter name to that of the undivided model."""
    if name == "output_layer.weight" and model.share_embeddings_and_output_weights:
        return "embedding.word_embeddings.weight"
    first = parallel_state.get_pipeline_model_parallel_rank() * len(model.decoder.layers)
    prefix, layers, rest = name.partition("decoder.layers.")
    if not layers:
        return name
    number, _, rest = rest.partition(".")
    return f"{prefix}{layers}{first + int(number)}.{rest}"


def own(name: str, whole: torch.Tensor, parameters: Mapping[str, torch.nn.Parameter]) -> torch.Tensor:
    """This tensor-parallel rank's part of a whole parameter, or of its gradient."""
    parameter = parameters[name]
    if not getattr(parameter, "tensor_model_parallel", False):
        return whole
    ranks, rank = (
        parallel_state.get_tensor_model_parallel_world_size(),
        parallel_state.get_tensor_model_parallel_rank(),
    )
    return whole.chunk(ranks, parameter.partition_dim)[rank]


def adopt(model: GPTModel, whole: Mapping[str, torch.Tensor]) -> GPTModel:
    """A stage with its part of a whole model's weights."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(own(name, whole[name_in_whole(name, model)], parameters))
    return model


class GradientRecorder:
    """An optimizer that keeps the gradients Megatron hands it and changes nothing."""

    config = SimpleNamespace()

    def __init__(self, model: GPTModel):
        self.model = model
        self.gradients: dict[str, torch.Tensor] = {}

    def scale_loss(self, loss: torch.Tensor) -> torch.Tensor:
        return loss

    def zero_grad(self) -> None:
        """Nothing: verl calls it after the step too."""

    def step(self) -> tuple[bool, float, None]:
        """verl's (done, gradient norm, zeros)."""
        self.gradients = {name: p.main_grad.clone() for name, p in self.model.named_parameters()}
        return True, 0.0, None
