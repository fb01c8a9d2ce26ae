"""Cancels a test that hangs after a moment, which is a share of its timeout."""

from tests.harness import plugin

plugin.PATIENCE = 0.0025  # of 10 s
