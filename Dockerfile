# verl-s2d on verl's image for vLLM 0.24.0. This file has not been built or run yet.
#
# verl's own continuous integration of 0.9 uses this image: torch 2.11.0, vLLM 0.24.0, flash-attn 2.8.3, Megatron-LM and
# Transformer Engine on CUDA 13 with Python 3.12, but no verl, which the extra `gpu` brings. Other versions: --build-arg.
ARG VERL_IMAGE=verlai/verl:vllm024.dev2
FROM ${VERL_IMAGE}
WORKDIR /workspace/verl-s2d
COPY . .
# The packages of the image satisfy the pins, so pip replaces none of them.
RUN python3 -m pip install --no-cache-dir -e ".[gpu]" && verl-s2d --version
CMD ["verl-s2d", "gpu-check"]
