"""Figures and tables of runs: python -m loft_jax.report"""
