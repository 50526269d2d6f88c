"""What each action and event makes of the state."""
