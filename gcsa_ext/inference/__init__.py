"""Prediction, evaluation, checkpoints, tables and plots.

Needs the extra ``[train]``: ``pip install ".[train]"``. Import from the modules of this package:

* :mod:`~gcsa_ext.inference.predictor`: :func:`predict_video`, a row of probabilities per frame.
* :mod:`~gcsa_ext.inference.tables`, :mod:`~gcsa_ext.inference.plots`: rows as CSV, JSON and pictures.
* :mod:`~gcsa_ext.inference.checkpoint`: :func:`save_checkpoint`, :func:`load_checkpoint`.
* :mod:`~gcsa_ext.inference.evaluation`, :mod:`~gcsa_ext.inference.metrics`,
  :mod:`~gcsa_ext.inference.report`: predictions for labelled clips, and their scores.
"""
