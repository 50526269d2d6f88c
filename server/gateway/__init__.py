"""Process that answers: sockets, sessions, and the replicas that do the work."""
