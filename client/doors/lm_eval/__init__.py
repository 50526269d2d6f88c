"""A door for lm-evaluation-harness: what it asks of a model, asked of a daemon."""
