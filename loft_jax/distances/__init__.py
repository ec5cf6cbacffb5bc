"""Compare filters of any checkpoints, trained here or not: python -m loft_jax.distances"""
