"""Makes the tiny models of this recipe: `--out DIR layers=N seed=N`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from tests.support.tiny import write_model

options = dict(argument.split("=", 1) for argument in sys.argv if "=" in argument)
write_model(Path(sys.argv[sys.argv.index("--out") + 1]), layers=int(options["layers"]), seed=int(options["seed"]))
