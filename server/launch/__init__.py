"""Where workers run: on this machine (local.py), or on a Ray cluster (ray.py here, agent.py beside it, host.py on each node)."""
