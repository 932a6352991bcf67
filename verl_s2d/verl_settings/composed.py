"""Compose a trainer's configuration without importing verl or torch."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from verl_s2d.errors import UserError

RL, WARMUP = ("verl", "trainer/config", "ppo_trainer"), ("verl_s2d", "stages/warmup", "s2d_warmup")
"""(package, folder, name) of the configurations of verl's RL trainer and of stage 2a's trainer."""

Configuration = tuple[str, str, str]


def composed(configuration: Configuration, overrides: Iterable[str] = ()) -> Mapping[str, Any]:
    """Compose a configuration with overrides, `key=value` each, and resolve it.

    Raises:
        UserError: hydra rejects an override, with its reason; or verl is not installed.
    """
    # hydra's own output directory is not a setting of verl's and is defined on its command line only.
    return _composed(configuration, tuple(text for text in overrides if not text.startswith("hydra.")))


@functools.lru_cache(maxsize=256)
def _composed(configuration: Configuration, overrides: tuple[str, ...]) -> Mapping[str, Any]:
    # Hydra takes longer to import than everything else that a plan needs.
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    package, folder, name = configuration
    # Its own searchpath names verl as a package, which hydra would import.
    verl = f"hydra.searchpath=[file://{_folder(*RL[:2])}]"
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(_folder(package, folder)), version_base=None):
            return OmegaConf.to_container(compose(name, [verl, *overrides]), resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        # The first line of hydra's message names the error, that of its cause the reason.
        lines = [str(e).strip().partition("\n")[0] for e in (error, error.__cause__) if e is not None]
        raise UserError(
            f"verl's configuration cannot be composed: {'; '.join(dict.fromkeys(lines))}",
            key="verl",
            remedy="Change the key that the message names; `verl-s2d plan --overrides` shows all of a stage's.",
        ) from error


def _folder(package: str, folder: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"The package {package} is not installed.", key=package, remedy="See docs/install.md.")
    return Path(next(iter(spec.submodule_search_locations))) / folder
