"""Attacks, one in each file: see tests.reliability.hostile."""
