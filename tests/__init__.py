"""Tests, run by Twisted's trial: ``python -m twisted.trial tests``."""

from hypothesis import HealthCheck, settings

# A slow machine must not fail a test.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
