"""List the heavy modules that a stage's processes import, except Ray and verl, which import quickly after these."""

from __future__ import annotations

MODULES = (
    "torch",
    "torch.distributed.fsdp",
    "torch.distributed.checkpoint",
    "torch.utils.tensorboard",
    "tensordict",
    "torchdata.stateful_dataloader",
    "transformers",
    "transformers.models.auto.modeling_auto",
    "transformers.models.qwen3.modeling_qwen3",
    "datasets",
    "pandas",
    "pyarrow.parquet",
    "accelerate",
    "peft",
    "hydra",
    "codetiming",
    "uvicorn",
    "aiohttp",
    "zmq",
    "vllm.v1.engine.core",
    "vllm.v1.engine.async_llm",
    "vllm.v1.worker.cpu_worker",
    "vllm.entrypoints.openai.api_server",
    "vllm.entrypoints.cli.serve",
    "vllm.lora.worker_manager",
    "vllm.model_executor.models.qwen3",
    # verl adapts the loaders of these models whenever it imports vLLM.
    "vllm.model_executor.models.deepseek_v2",
    "vllm.model_executor.models.kimi_vl",
    "vllm.model_executor.models.mixtral",
    "vllm.model_executor.models.qwen3_5",
    "vllm.model_executor.models.qwen3_next",
    "vllm.model_executor.models.qwen3_vl_moe",
    # verl imports every engine that is installed.
    "megatron.core",
    "megatron.core.pipeline_parallel",
)
