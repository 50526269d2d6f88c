"""Whole files of texts: scored or continued by a server, into a table. It imports the protocol alone."""
