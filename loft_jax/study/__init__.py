"""Do a study, from pretraining to one report: python -m loft_jax.study"""
