"""Set the environment of all tests: verl's platform `cpu` where it is asked for, no deadlines, Ray without tokens.

Ray reads its token mode once per process. A second cluster in the same process may start in another mode, and then
drops every actor at once, because the driver does not answer it.
"""

from __future__ import annotations

import os

from hypothesis import settings

os.environ.setdefault("VERL_PLATFORM", "cpu")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
