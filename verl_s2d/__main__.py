"""Run `python -m verl_s2d`, the same as `verl-s2d`."""

import sys

from verl_s2d.cli import main

if __name__ == "__main__":
    sys.exit(main())
