"""Tests, run by Twisted's trial: ``python -m twisted.trial tests``."""
