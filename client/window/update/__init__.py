"""Changes the state by each action and event."""
