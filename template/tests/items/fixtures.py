"""Fixtures of the feature."""
