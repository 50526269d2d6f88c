"""Whole files of texts: scored or continued by a server, into a table. They need no window and no terminal."""
