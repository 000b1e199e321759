"""For all tests: no deadlines in hypothesis, since these machines are noisy."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("noisy machine", deadline=None)
settings.load_profile("noisy machine")
