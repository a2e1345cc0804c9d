"""State, step, loop and optimiser, the same for every system."""
