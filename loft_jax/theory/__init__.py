"""Theorem 1 by experiment: python -m loft_jax.theory"""
