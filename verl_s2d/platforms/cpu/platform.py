"""Register verl's platform `cpu`: FSDP2 over gloo, rollout by vLLM's CPU build, Ray "GPU"s as logical slots.

Only VERL_PLATFORM=cpu selects it. A process without that variable may be an actor without a device on a GPU cluster,
which has to stay on verl's own platform.
"""

from __future__ import annotations

import types
from contextlib import contextmanager
from typing import Any

import torch
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry

from verl_s2d.platforms.environment import cpu_environment, cpu_requested


class _CpuDeviceModule(types.ModuleType):
    """`torch.cpu` plus the memory calls that verl makes on every device module.

    It equals torch.cpu, because verl tests `device_module == torch.cpu` to skip what a CPU cannot report.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cpu, name)

    def __eq__(self, other: object) -> bool:
        return other is self or other is torch.cpu

    __hash__ = types.ModuleType.__hash__

    @staticmethod
    def is_available() -> bool:
        """Return False: verl then skips cache handling and device RNG state."""
        return False

    @staticmethod
    def max_memory_allocated(*_: Any) -> int:
        return 0

    max_memory_reserved = memory_allocated = memory_reserved = max_memory_allocated

    @staticmethod
    def empty_cache() -> None:
        return None

    ipc_collect = reset_peak_memory_stats = empty_cache

    @staticmethod
    def set_rng_state(state: torch.Tensor) -> None:
        """Set the CPU's generator: verl restores the device's generator, here the same one, after the CPU's."""
        torch.set_rng_state(state)


class _CpuDevice(str):
    """The current device: `"cpu"` for `tensor.to`, and "0" in an f-string, where verl writes `f"{name}:{index}"`."""

    __slots__ = ()

    def __format__(self, spec: str) -> str:
        return format("0", spec)


@PlatformRegistry.register(platform="cpu")
class PlatformCPU(PlatformBase):
    """A machine without an accelerator."""

    _module = _CpuDeviceModule("verl_s2d_cpu_device")
    _device = _CpuDevice("cpu")

    @property
    def device_name(self) -> str:
        return "cpu"

    @property
    def vendor_name(self) -> str:
        return "cpu"

    @property
    def device_module(self) -> types.ModuleType:
        return self._module

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        """Report True only where VERL_PLATFORM=cpu asks for it; a host without a device may belong to a GPU cluster."""
        return cpu_requested()

    def current_device(self) -> _CpuDevice:
        return self._device

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None:
        return None

    def synchronize(self, device_index: int | None = None) -> None:
        return None

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        return None

    def empty_cache(self) -> None:
        return None

    def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    @contextmanager
    def nvtx_range(self, msg: str):
        yield

    def profiler_start(self) -> None:
        return None

    def profiler_stop(self) -> None:
        return None

    def ray_resource_name(self) -> str:
        """Return "GPU", Ray's name of the accelerators in verl's pools: logical slots here (`ray_init.num_gpus`)."""
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def rollout_env_vars(self) -> dict[str, str]:
        return cpu_environment()

    def is_ipc_supported(self) -> bool:
        """Return False: weights are sent to the rollout through shared memory."""
        return False

    def cudart(self) -> None:
        return None
