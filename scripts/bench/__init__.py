"""Benchmarks: each program measures one thing."""
