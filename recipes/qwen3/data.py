"""The paper's data for these recipes: `verl-s2d prepare` as a data script, `--out DIR key=value ...`."""

from __future__ import annotations

import sys

from verl_s2d import arguments
from verl_s2d.data.prepare import Options, prepare
from verl_s2d.errors import UserError
from verl_s2d.report.command_text import prepare_text

if __name__ == "__main__":
    given = sys.argv[1:]
    place = given.index("--out")
    settings = [f"out={given[place + 1]}", *given[:place], *given[place + 2 :]]
    try:
        print(prepare_text(prepare(arguments.parse(settings, Options))))
    except UserError as error:
        sys.exit(f"error: {error}")
