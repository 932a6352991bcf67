"""Define the settings of the stages: what may stand in each section below `stages:`, and in `evaluation:`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BeforeValidator, Field, FiniteFloat, model_validator

from verl_s2d.data.teacher_prompt import columns_of
from verl_s2d.errors import UserError
from verl_s2d.recipe.engine_settings import check_engine
from verl_s2d.recipe.pass_at_k import check_pass_at
from verl_s2d.recipe.servers import Servers
from verl_s2d.recipe.until import DIVERGENCE, SAMPLED_TOKENS, TRAVEL, VALIDATION, Until
from verl_s2d.validation import Refused, Section

Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[float, Field(ge=0)]
Temperature = Annotated[float, Field(ge=0, le=2)]
"""0 is greedy, 2 is vLLM's limit."""
Nucleus = Annotated[float, Field(gt=0, le=1)]

Overrides = dict[str, Any]
"""Dotted keys of verl -> values."""

AlarmOverrides = dict[str, Any]
"""Alarms of one stage: keys as under the recipe's `alarms:`, which holds for the keys left out."""


def _checked_engine(engine: dict[str, Any]) -> dict[str, Any]:
    check_engine(engine)
    return engine


Engine = Annotated[dict[str, Any], AfterValidator(_checked_engine)]
"""Arguments of vLLM's LLM beside those that follow from the recipe."""


def _typed(signal: Any) -> Any:
    return {"type": signal} if isinstance(signal, str) else signal


SignalSettings = Annotated[dict[str, Any], BeforeValidator(_typed)]
"""A signal: {type: jsd, beta: 0.3}, or its type alone. Types and keys are those of verl_s2d.signals, or file.py:Name
of a file beside the recipe."""


class Sampler(Section):
    """Settings of a stage that samples with vLLM and trains nothing."""

    temperature: Temperature = 1.0
    """0 is greedy."""
    top_p: Nucleus = 1.0
    """Nucleus sampling: the share of the probability that is sampled from."""
    tensor_parallel_size: Positive = 1
    """GPUs that share one engine's model; as many engines start as the cluster's GPUs hold. Rebuilds nothing."""
    engine: Engine = {}
    """More arguments of vLLM's LLM: {gpu_memory_utilization: 0.8, max_num_seqs: 64}. The operational ones
    (recipe/engine_settings.py) rebuild nothing; dtype, quantization and others decide the samples."""


class Evaluation(Sampler):
    """Sampling of the evaluation. The paper reports avg@16."""

    samples: Positive = 16
    """Answers of each problem: the k of avg@k."""
    max_tokens: Positive | None = None
    """Null: data.response_tokens."""
    pass_at: list[int] = []
    """The k of the report's pass@k, each at most `samples`; empty for 1, 2, 4, ... It rebuilds nothing."""

    @model_validator(mode="after")
    def _defined_k(self) -> Evaluation:
        check_pass_at(self.pass_at, self.samples, "pass_at")
        return self


class Trained(Section):
    """Settings of a stage that trains.

    Attributes:
        measured: what the stage measures, for rules of `until`.
    """

    measured: ClassVar[tuple[str, ...]] = ()
    steps: Positive
    """Number of steps; with `until` their maximum."""
    until: Until | None = None
    """Rules that end the stage earlier (until.py): {travel: 0.3, plateau: divergence}; null for none."""
    save_every: Positive = 10
    """Steps between two checkpoints."""
    save_minutes: NonNegative | None = 30.0
    """Also save at the end of the first step after this many minutes without a checkpoint; null for never. Rebuilds
    nothing. A stage that an alarm may stop saves every `save_every` steps only: its result is one of those checkpoints,
    and all of them are kept."""
    verl: Overrides = {}
    """verl's own dotted keys -> values, as in actor_rollout_ref.actor.optim.lr: 1e-6."""
    alarms: AlarmOverrides = {}
    """Alarms of this stage: keys as under the recipe's `alarms:`, which holds for the keys left out."""

    @model_validator(mode="after")
    def _ends(self) -> Trained:
        if self.until is not None:
            try:
                self.until.require_measured(self.measured)
                self.until.require_reachable(self.steps, validate_every=getattr(self, "validate_every", None))
            except Refused as refused:
                raise refused.below("until") from None
        return self


class ReinforcementLearning(Trained):
    """Stages 1 and 3: verl's GRPO."""

    measured = (TRAVEL, VALIDATION, SAMPLED_TOKENS)
    validate_every: Positive | None = None
    """Steps between two validations on data.validation, sampled as verl's rollout.val_kwargs say; null for none."""


class StudentReinforcementLearning(ReinforcementLearning):
    """Stage 3."""

    credit: SignalSettings = {}
    """The row's teacher changes GRPO's update: {type: rlsd, lambda: 0.5}, or a type alone. Types and keys are those of
    verl_s2d.signals.credit, or file.py:Name of a file beside the recipe. Rows without a teacher run plain GRPO."""


class Rollouts(Sampler):
    """The cache of teacher rollouts that stage 2a trains on."""

    per_prompt: Positive | None = None
    """Null: as many rollouts in total as the warmup reads, each once, spread over as many problems as possible. With a
    number the cache does not depend on the warmup's steps."""
    top_k: int = Field(-1, ge=-1)
    """Sample from this many likeliest tokens; -1 for all."""


class PassRateSampler(Sampler):
    """Settings of the stage that measures pass rates for `problem_weights` of stages 2a and 2b."""

    samples: int = Field(8, ge=2)
    """Rollouts of each problem. A single one would make every rate 0 or 1, and every weight 0."""


class ProblemWeights(Section):
    """Weigh problems by w = p^a (1 - p)^b over the slice's mean of it; p is the pass rate of the model that the stage
    trains, measured before its first step (PACED, arXiv 2603.11178)."""

    a: Annotated[FiniteFloat, Field(ge=0)] = 1.0
    """Exponent of the pass rate: a larger one lowers the weight of problems that are rarely solved."""
    b: Annotated[FiniteFloat, Field(ge=0)] = 1.0
    """Exponent of the failure rate: a larger one lowers the weight of problems that are mostly solved."""

    @model_validator(mode="after")
    def _some_effect(self) -> ProblemWeights:
        if self.a == self.b == 0:
            raise Refused(
                "Both exponents are 0, so every problem would weigh the same.",
                key="a",
                value=self.a,
                remedy="Make one of a and b positive, or leave problem_weights out.",
            )
        return self

    def require_some(self, rates: Mapping[str, float], *, key: str, value: Any) -> None:
        """Raise UserError if pass rates (problem id -> rate) give every problem the weight 0."""
        if not any((rate > 0 or self.a == 0) and (rate < 1 or self.b == 0) for rate in rates.values()):
            raise UserError(
                f"All {len(rates)} problems weigh nothing: each is solved always or never.",
                key=key,
                value=value,
                remedy="Choose problems of another difficulty, more samples of each, or leave problem_weights out.",
            )


class Prefix(Section):
    """Sample prefixes of responses that grow from step to step, the single-turn form of TCOD's curriculum: early steps
    are cheap, and their tokens follow a prefix that is still near the teacher's text."""

    start: Positive
    """Tokens of a response in the first step."""
    grow: Positive
    """Tokens added every `every` steps, up to the stage's maximal response."""
    every: Positive = 1
    """Steps between two changes of the limit."""

    def tokens(self, step: int) -> int:
        """Return the most tokens that a response may have in a step, counted from 1; not yet cut at the maximum."""
        return self.start + self.grow * ((step - 1) // self.every)


class Warmup(Trained):
    """Stage 2a: the student on cached teacher rollouts."""

    measured = (DIVERGENCE,)
    signal: SignalSettings = {}
    """forward_kl unless a type is given."""
    problem_weights: ProblemWeights | None = None
    """Null: all problems weigh the same."""


def _checked_prompt(template: str) -> str:
    columns_of(template)
    return template


class OnPolicyDistillation(Trained):
    """Stage 2b."""

    measured = (TRAVEL, DIVERGENCE, SAMPLED_TOKENS)
    signal: SignalSettings = {}
    """sampled unless a type is given."""
    response_tokens: Positive | None = None
    """Length at which this stage cuts responses; null for data.response_tokens, which is the maximum. A dense signal
    needs no finished answer, and a step waits for its longest response."""
    servers: dict[str, Servers] = {}
    """Role of a frozen model -> its vLLM servers, on GPUs of the cluster that the student then does not have: {teacher:
    {tensor_model_parallel_size: 4}}, for a teacher that does not fit beside the student. Rebuilds nothing. Other models
    are evaluated in the student's workers."""
    teacher_prompt: Annotated[str, AfterValidator(_checked_prompt)] | None = None
    """Prompt that the teacher reads in place of the student's, as in "{prompt} Be concise." (CRISP) or "{prompt} The
    answer is {answer}." (OPSD, arXiv 2601.18734): a format string with {prompt}, {answer} and keys of extra_info. With
    anything but {prompt} the stage reads labels, and the ledger counts them. Null: the student's prompt."""
    teacher_refresh: Positive | None = None
    """Steps after which the teacher becomes the student of that step, again and again (CRISP: 40 to 60; fewer degrade).
    Only where the teacher starts as the student, as in the row self-teacher. Null: never."""
    travel: bool = False
    """Log the distance from the model that the stage starts from, for the alarm `travel`. It takes a forward pass of
    that model, one more frozen engine; with an exact signal also one of the student. Rebuilds nothing. A rule of
    `until` that reads it implies it."""
    problem_weights: ProblemWeights | None = None
    """Null: all problems weigh the same."""
    prefix: Prefix | None = None
    """Null: every step samples responses of up to `response_tokens`."""


class CoEvolution(Section):
    """Rounds of the row `copd`: co-evolving policy distillation (arXiv 2604.27083). A round trains every branch on the
    labels of its own data sources, with the settings of `student_rl`, then distils the other branches into it on the
    prompts of theirs, with those of `opd`. The publication reports 1.5 RL steps for one of distillation as best."""

    rounds: Positive
    """Number of rounds."""
    rl_steps: Positive
    """Steps of stage 3 of each branch in a round."""
    opd_steps: Positive
    """Steps of stage 2b of each branch in a round."""

    @property
    def numbers(self) -> range:
        """Number the rounds from 1."""
        return range(1, self.rounds + 1)
