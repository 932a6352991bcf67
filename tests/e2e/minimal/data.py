"""Makes the problems of this recipe, `--out DIR labelled=N evaluation=N`, and scores answers to them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from tests.support.tiny import score_sum, write_problems


def score(data_source, solution_str, ground_truth, extra_info=None):
    """The recipe's verifier."""
    return score_sum(data_source, solution_str, ground_truth)


if __name__ == "__main__":
    import pyarrow.parquet as pq

    options = dict(argument.split("=", 1) for argument in sys.argv if "=" in argument)
    out = Path(sys.argv[sys.argv.index("--out") + 1])
    labelled, evaluation = int(options["labelled"]), int(options["evaluation"])
    problems = pq.read_table(write_problems(out / "train.parquet", labelled + evaluation))
    pq.write_table(problems.slice(0, labelled), out / "train.parquet")
    pq.write_table(problems.slice(labelled), out / "eval.parquet")
