"""Video sentiment and affect systems in JAX: train, evaluate and reproduce them."""

__version__ = "0.1.0"
