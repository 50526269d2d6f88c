"""The client: sends load and generate commands to a daemon and shows what comes back."""
