"""Engines: they know tensors and tokens, never sockets or requests."""
