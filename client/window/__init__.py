"""The desktop window: its state, what changes it, and what draws it."""
