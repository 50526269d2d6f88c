"""Attacks, one in each file: see scripts.reliability.hostile."""
