"""Say what the TRL side is to run: models, problems and settings, as JSON between two environments.

Imports the standard library alone, since the environment with TRL has neither verl nor this project's dependencies.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Sampling:
    """Samples of each prompt, and the sampler's temperature and nucleus."""

    samples: int
    temperature: float
    top_p: float = 1.0


@dataclass(frozen=True)
class Training:
    """A training stage.

    Attributes:
        prompts: prompts of an update. The warmup's are cached rollouts, with one sample each.
        sampling: rollouts of each prompt.
        warmup_steps: steps in which the learning rate rises from 0; it is constant afterwards.
    """

    steps: int
    save_every: int
    prompts: int
    sampling: Sampling
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    clip_grad: float

    @property
    def sequences(self) -> int:
        """Sequences of an update."""
        return self.prompts * self.sampling.samples


@dataclass(frozen=True)
class Inputs:
    """Paths that both sides start from: two models, two halves of the labelled problems, and the evaluation set."""

    teacher: str
    student: str
    first_half: str
    second_half: str
    evaluation: str


@dataclass(frozen=True)
class BridgePlan:
    """The stages of the row half-split."""

    inputs: Inputs
    teacher_rl: Training
    rollouts: Sampling
    warmup: Training
    opd: Training
    student_rl: Training
    evaluation: Sampling
    response_tokens: int
    seed: int

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1))

    @classmethod
    def read(cls, path: Path) -> BridgePlan:
        data = json.loads(path.read_text())
        training = {name: _training(data.pop(name)) for name in ("teacher_rl", "warmup", "opd", "student_rl")}
        sampling = {name: Sampling(**data.pop(name)) for name in ("rollouts", "evaluation")}
        return cls(inputs=Inputs(**data.pop("inputs")), **training, **sampling, **data)


def _training(data: dict) -> Training:
    return Training(**{**data, "sampling": Sampling(**data["sampling"])})
