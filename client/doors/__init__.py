"""Doors: clients of the daemon that speak to other programs in their own way. They import the protocol alone."""
