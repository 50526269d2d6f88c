"""Arrays -> what an engine opens, kept on disk."""
