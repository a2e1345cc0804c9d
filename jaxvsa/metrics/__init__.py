"""Scores as states that merge; `compute` runs once, on the host."""
