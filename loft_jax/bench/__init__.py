"""Speed, as ratios in one run: python -m loft_jax.bench"""
