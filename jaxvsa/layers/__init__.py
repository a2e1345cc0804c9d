"""Linen modules that more than one system uses."""
