"""From files to batches of numpy arrays; no flax, no optax."""
