"""Starts workers: on this machine (local.py) or on a Ray cluster (ray.py; agent.py beside it, host.py on its nodes)."""
