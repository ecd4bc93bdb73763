"""Prediction, evaluation, checkpoints, tables and plots.

Needs the extra ``[train]``: ``pip install ".[train]"``.
"""
