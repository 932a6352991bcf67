"""Environment of all tests: verl's platform `cpu`, which is used only where it is asked for."""

from __future__ import annotations

import os

os.environ.setdefault("VERL_PLATFORM", "cpu")
