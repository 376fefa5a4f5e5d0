"""How hard the property tests try: `quick` always, `thorough` from tests/test_properties.py in the slow tier."""

from __future__ import annotations

from hypothesis import settings

# No deadlines: a slow machine is no fault of the code.
settings.register_profile("quick", max_examples=50, deadline=None)
settings.register_profile("thorough", max_examples=500, deadline=None)
settings.load_profile("quick")
