"""What a recipe may say: one dataclass a section. `recipe_file.load_recipe` fills them and checks every key."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from verl_s2d.recipe.alarm_settings import Alarms

ROW_NAMES = (
    "cold-student",
    "direct-grpo",
    "bridge-only-1h",
    "half-split",
    "full-bridge",
    "raw-teacher",
    "opd-only",
    "warmup-only",
    "replay-control",
    "held-out-upstream",
    "same-size-teacher",
    "sft-teacher",
)
DEFAULT_ROWS = ROW_NAMES[:4]

LedgerItem = Literal["labels", "verifier_calls", "sampled_tokens", "updates"]
"""What a row can be matched by."""

Overrides = dict[str, Any]

AlarmOverrides = dict[str, Any]
"""As `alarms:` of the recipe; what is not named is as there."""


def at_least(minimum: float, default: Any = ...) -> Any:
    """Dataclass field with a lower bound, checked when the recipe is loaded. `...` as default makes it required."""
    metadata = {"at_least": minimum}
    return field(metadata=metadata) if default is ... else field(default=default, metadata=metadata)


SAVE_MINUTES = 30.0
"""Default of `save_minutes`: a stage also saves at the end of the first step after so many minutes without a
checkpoint; null for never. Rebuilds nothing. A stage that an alarm may stop saves every `save_every` steps only: its
result is one of those checkpoints, and all of them are kept."""


@dataclass(frozen=True)
class Source:
    """Where a model or a data set comes from: a script of the recipe, or (models only) a hub id or directory."""

    model: str | None = None
    """Hub id or local directory; relative directories count from the recipe file."""
    revision: str | None = None
    """Revision of a hub id."""
    config: str | None = None
    """A config.json with the shape of a hub model, for `plan` where the hub cannot be reached."""
    script: str | None = None
    """Python file beside the recipe, run as `script --out DIR key=value ...`."""
    args: dict[str, Any] = field(default_factory=dict)
    """The script's key=value arguments. The value "{seed}" stands for the seed of the row being built."""
    trust_remote_code: bool = False
    """Models only: run the Python code that comes with the checkpoint, wherever the model or what is trained from it is
    loaded."""
    uses: list[str] = field(default_factory=list)
    """Other files the script reads or imports: a change in them rebuilds its output."""


@dataclass(frozen=True)
class Data:
    """Problems: a script that writes train.parquet and evaluation parquets, or files that are already there."""

    prompt_tokens: int = at_least(1)
    response_tokens: int = at_least(1)
    source: Source | None = None
    train: str | None = None
    eval: dict[str, str] = field(default_factory=dict)
    validation: str | None = None
    """Labelled problems on which stages 1 and 3 are scored while they train (`validate_every`): neither trained on nor
    evaluated on. The ledger counts their labels and verifier calls too."""
    labels: int | None = at_least(2, None)
    """How many labelled problems of the training set are used; null for all of them."""
    chat_template: dict[str, Any] = field(default_factory=dict)
    """Arguments of the tokenizer's chat template, for example {enable_thinking: false}; the same in every stage."""
    expected: dict[str, int] = field(default_factory=dict)
    """How many problems a source is expected to write, {train: 16142, math500: 500}: for the costs in `plan`, as long
    as it has not run."""


@dataclass(frozen=True)
class Evaluation:
    """Sampling of the evaluation. The paper reports avg@16."""

    samples: int = at_least(1, 16)
    temperature: float = at_least(0, 1.0)
    top_p: float = at_least(0, 1.0)
    max_tokens: int | None = at_least(1, None)
    """Null: data.response_tokens."""
    pass_at: list[int] = field(default_factory=list)
    """The k of the report's pass@k, each at most `samples`; empty for 1, 2, 4, ... It rebuilds nothing."""
    tensor_parallel_size: int = at_least(1, 1)
    """GPUs that one engine divides the model among; there are as many engines as the machine's GPUs hold. It does not
    change what is built."""
    engine: Overrides = field(default_factory=dict)
    """More arguments of vLLM's LLM: {gpu_memory_utilization: 0.8, max_num_seqs: 64}. Those that only say how the work
    is done (sampling/engine_settings.py) rebuild nothing; dtype, quantization and others decide the samples."""


@dataclass(frozen=True)
class ReinforcementLearning:
    """Stages 1 and 3: verl's GRPO."""

    steps: int = at_least(1)
    save_every: int = at_least(1, 10)
    save_minutes: float | None = at_least(0, SAVE_MINUTES)
    validate_every: int | None = at_least(1, None)
    """Steps between two validations on data.validation, sampled as verl's rollout.val_kwargs say; null for none."""
    verl: Overrides = field(default_factory=dict)
    alarms: AlarmOverrides = field(default_factory=dict)


@dataclass(frozen=True)
class Rollouts:
    """The cache of teacher rollouts that stage 2a trains on."""

    per_prompt: int | None = at_least(1, None)
    """Null: as many rollouts in all as the warmup reads, each once, of as many different problems as there are. With a
    number the cache stays as it is when the warmup's steps change."""
    temperature: float = at_least(0, 1.0)
    top_p: float = at_least(0, 1.0)
    top_k: int = at_least(-1, -1)
    tensor_parallel_size: int = at_least(1, 1)
    """As of `evaluation`; a 70B teacher needs several."""
    engine: Overrides = field(default_factory=dict)
    """As of `evaluation`."""


@dataclass(frozen=True)
class Warmup:
    """Stage 2a: forward KL on the cached rollouts."""

    steps: int = at_least(1)
    save_every: int = at_least(1, 10)
    save_minutes: float | None = at_least(0, SAVE_MINUTES)
    objective: Literal["forward_kl"] = "forward_kl"
    verl: Overrides = field(default_factory=dict)
    alarms: AlarmOverrides = field(default_factory=dict)


@dataclass(frozen=True)
class OnPolicyDistillation:
    """Stage 2b."""

    steps: int = at_least(1)
    save_every: int = at_least(1, 10)
    save_minutes: float | None = at_least(0, SAVE_MINUTES)
    objective: Literal["advantage", "reverse_kl", "jsd"] = "advantage"
    beta: float = at_least(0, 1.0)
    response_tokens: int | None = at_least(1, None)
    """Length at which this stage cuts responses; null for data.response_tokens, which is the most. A dense signal needs
    no finished answer, and a step ends with its longest one."""
    verl: Overrides = field(default_factory=dict)
    alarms: AlarmOverrides = field(default_factory=dict)


@dataclass(frozen=True)
class Stages:
    """Settings of the stages. Only those that the chosen rows need have to be there."""

    teacher_rl: ReinforcementLearning | None = None
    rollouts: Rollouts | None = None
    warmup: Warmup | None = None
    opd: OnPolicyDistillation | None = None
    student_rl: ReinforcementLearning | None = None


@dataclass(frozen=True)
class Matched:
    """One more row: `row`, its last stage stopped where the whole row has consumed what the row `to` consumed.

    It stops at the first step at or past that, however many steps the stage's settings ask for. The report says by how
    much it missed.
    """

    row: str
    to: str
    by: LedgerItem


@dataclass(frozen=True)
class Cluster:
    """Where stages run. None of it changes what is built, so none of it rebuilds anything."""

    nodes: int = at_least(1, 1)
    gpus_per_node: int = at_least(1, 1)
    gpu_memory_gb: float = at_least(1, 80.0)
    """Memory of one GPU in GiB, which is what vendors write as GB; `plan` compares its estimates with it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    warm_start: Literal["auto", True, False] = "auto"
    """Fork stages from a process that has imported verl already, instead of importing it once a stage."""
    stall_minutes: float | None = at_least(0, None)
    """A stage is stopped whose log says nothing new, and whose metrics and files do not change, for so long. A fifth
    of it (but a minute) suffices once a log holds an error, before the first step only the death of a process or node.
    Null: 60 on cuda, 10 on cpu."""
    step_minutes: float = at_least(0, 120.0)
    """A stage that writes its log but ends no step for so long, and for ten times its longest step, is stopped."""
    grace_seconds: float | None = at_least(0, None)
    """After SIGTERM, how long a stage that trains may take to end its step and save before it is stopped. Choose two
    steps, and less than the notice of the scheduler. Null: 1800 on cuda, 25 on cpu."""
    retries: int = at_least(0, 0)
    """How often a failed stage is started again (it resumes from its last checkpoint)."""
    wait_minutes: float = at_least(0, 30.0)
    """How long to wait, before each attempt, until the cluster of RAY_ADDRESS has its nodes and they are free."""

    def on(self, device: str) -> Cluster:
        """Fill in the times that depend on the device: steps take seconds on a CPU and minutes on GPUs."""
        stall, grace = (10.0, 25.0) if device == "cpu" else (60.0, 1800.0)
        return dataclasses.replace(
            self,
            stall_minutes=stall if self.stall_minutes is None else self.stall_minutes,
            grace_seconds=grace if self.grace_seconds is None else self.grace_seconds,
        )


@dataclass(frozen=True)
class Recipe:
    """One experiment: models, data, the rows to compare and the settings of their stages."""

    name: str
    student: Source
    data: Data
    verifier: str | dict[str, Any]
    """A verifier of verl_s2d.verifiers, alone or with options ({name: math, form: boxed}), or file.py:function beside
    the recipe."""
    stages: Stages = field(default_factory=Stages)
    teacher: Source | None = None
    sft_teacher: Source | None = None
    """For the row sft-teacher: a teacher trained on demonstrations instead of by Stage 1."""
    seeds: list[int] = field(default_factory=lambda: [0])
    rows: list[str] = field(default_factory=lambda: list(DEFAULT_ROWS))
    matched: dict[str, Matched] = field(default_factory=dict)
    """More rows, by a name of yours: {direct-grpo-same-calls: {row: direct-grpo, to: half-split, by: verifier_calls}}.
    """
    evaluation: Evaluation = field(default_factory=Evaluation)
    cluster: Cluster = field(default_factory=Cluster)
    alarms: Alarms = field(default_factory=Alarms)
    """What to do when training goes wrong; described in alarm_settings.py."""
    published: dict[str, dict[str, float]] = field(default_factory=dict)
    """Somebody else's avg@k to lay beside the rows, in percent: row -> evaluation set -> value."""
    path: Path = field(default=Path(), metadata={"hidden": True})
    """The file it came from (set by the loader, not a key)."""

    @property
    def row_names(self) -> tuple[str, ...]:
        """Every row there is to choose from."""
        return (*ROW_NAMES, *self.matched)

    @property
    def directory(self) -> Path:
        return self.path.parent
