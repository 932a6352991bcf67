"""Define the section `planner:` of a recipe: what `probe` and `pilot` measure, and where their verdicts change."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, model_validator

from verl_s2d.recipe.stage_settings import Engine, NonNegative, Positive
from verl_s2d.validation import Refused, Section, suggestion

STUDENT, TEACHER = "student", "teacher"
Share = Annotated[FiniteFloat, Field(ge=0, le=1)]


class Thresholds(Section):
    """Bounds of the verdicts. None of them rebuilds anything."""

    gap_se: NonNegative = 2.0
    """Standard errors by which a teacher has to be better than the student. Ours: a gap within 2 may be chance."""
    mixed: Share = 0.1
    """Smallest share of problems with right and wrong samples on which labels count as productive. Ours: below it, more
    than nine of ten labels give GRPO no gradient."""
    parse_rate: Share = 0.9
    """Smallest share of finished responses from which the verifier extracts an answer. Ours."""
    overlap: Share = 0.5
    """Smallest overlap of the two models' 16 likeliest tokens on student rollouts. The metric is that of arXiv
    2604.13016, which gives no bound; this one is ours."""
    mass: Share = 0.97
    """Smallest probability that the student gives the tokens likely to both: 97 to 99 % in good runs of 2604.13016."""
    travel: Annotated[FiniteFloat, Field(gt=0)] = 0.3
    """Distance sqrt(KL a token) up to which distillation transfers: the median of .20 to .36 in arXiv 2609.32722."""


THRESHOLD_SOURCES = {
    "gap_se": "ours",
    "mixed": "ours",
    "parse_rate": "ours",
    "overlap": "ours, for the metric of arXiv 2604.13016",
    "mass": "arXiv 2604.13016",
    "travel": "arXiv 2609.32722",
}
"""Where the default of each threshold comes from."""

Spending = Literal["direct-grpo", "full-bridge", "half-split", "exopd"]
"""A way to spend the labels, by the name of its row."""


class PilotSettings(Section):
    """Size of the pilot. A round doubles the labels of the round before."""

    smallest: Annotated[int, Field(ge=4)] = 16
    """The first round trains on this fraction of the labels: 1 / 16."""
    rounds: Annotated[int, Field(ge=2)] = 3
    """Number of rounds, 1/16, 1/8 and 1/4 of the labels: the law has two parameters, and a third point tests it."""
    updates: Annotated[int, Field(ge=2)] = 30
    """Steps of stage 2b from each teacher so trained."""
    evaluate_every: Positive = 5
    """Steps of these between two evaluations of the student."""
    candidates: Annotated[list[Spending], Field(min_length=1)] = ["direct-grpo", "full-bridge", "half-split"]
    """Ways to spend the labels that are compared, those with a bridge once for each teacher."""

    @model_validator(mode="after")
    def _fits(self) -> PilotSettings:
        if self.smallest < 2**self.rounds:
            raise Refused(
                "The last round would train on more than half of the labels.",
                key="rounds",
                value=self.rounds,
                remedy=f"At least {2**self.rounds} as `smallest`, or fewer rounds.",
            )
        if self.updates % self.evaluate_every:
            raise Refused(
                "The last steps of the bridge would not be evaluated.",
                key="updates",
                value=self.updates,
                remedy=f"Choose a multiple of evaluate_every ({self.evaluate_every}).",
            )
        if len(set(self.candidates)) < len(self.candidates):
            raise Refused(
                "A candidate is named twice.", key="candidates", value=self.candidates, remedy="Name it once."
            )
        return self


class Planner(Section):
    """Settings of `verl-s2d probe` and `verl-s2d pilot`; no row reads them."""

    teachers: list[str] | None = None
    """Roles of the teacher candidates; null: every model whose role begins with `teacher`."""
    problems: Annotated[int, Field(ge=2)] = 200
    """Labelled problems on which the models are compared, the same for all of them and among `data.labels`."""
    samples: Annotated[int, Field(ge=2)] = 8
    """Samples of each problem at temperature 1, of each model."""
    tensor_parallel_size: Positive = 1
    """GPUs that share one sampling engine's model. Rebuilds nothing."""
    engine: Engine = {}
    """More arguments of vLLM's LLM, as in `evaluation`."""
    thresholds: Thresholds = Thresholds()
    """Bounds of the verdicts."""
    pilot: PilotSettings = PilotSettings()
    """Size of the pilot."""

    def candidates(self, models: Iterable[str]) -> tuple[str, ...]:
        """Return the roles of the teacher candidates.

        Args:
            models: roles of the recipe's models.

        Raises:
            Refused: there is none, one is unknown or given twice, or the student is among them.
        """
        models = list(models)
        if self.teachers is None:
            found = tuple(role for role in models if role.startswith(TEACHER))
            if not found:
                raise Refused(
                    "There is no teacher to compare the student with.",
                    key="planner.teachers",
                    value=None,
                    remedy="Give `teacher:`, or name the roles of your candidates here.",
                )
            return found
        if not self.teachers:
            raise Refused(
                "There is no teacher to compare the student with.",
                key="planner.teachers",
                value=[],
                remedy="Name the roles of your candidates, or leave it out for every role that begins with `teacher`.",
            )
        for number, role in enumerate(self.teachers):
            if role == STUDENT:
                problem, remedy = "The student is no candidate.", "Leave it out: every candidate is compared with it."
            elif role in self.teachers[:number]:
                problem, remedy = "This candidate is named twice.", "Name it once."
            elif role not in models:
                others = [name for name in models if name != STUDENT]
                problem, remedy = "The recipe has no model of this role.", suggestion(role, others)
            else:
                continue
            raise Refused(problem, key="planner.teachers", value=role, remedy=remedy)
        return tuple(self.teachers)

    def require_problems(self, labels: int | None, key: str = "data.labels") -> None:
        """Raise Refused if there are fewer labelled problems than the planner compares models on.

        Args:
            labels: number of labelled problems; None if unknown.
            key: the setting or file that this number follows from, for the message.
        """
        if labels is not None and labels < self.problems:
            raise Refused(
                f"The recipe has fewer labelled problems: {labels} ({key}).",
                key="planner.problems",
                value=self.problems,
                remedy=f"At most {labels}. Few problems give wide standard errors.",
            )
