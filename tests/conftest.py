"""What all tests have in common: verl's platform `cpu`, which is used only where it is asked for, and no deadlines."""

from __future__ import annotations

import os

from hypothesis import settings

os.environ.setdefault("VERL_PLATFORM", "cpu")
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
