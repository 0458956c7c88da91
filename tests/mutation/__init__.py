"""Mutation testing: which small changes of the rules, causes, statistics and theory no test sees.

``python -m mutation`` (``make mutants``) remakes ``reports/mutation``.
"""
