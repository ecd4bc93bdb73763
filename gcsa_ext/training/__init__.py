"""Training, evaluation and checkpoints of the two-modality network.

Needs the extra ``[train]``: ``pip install ".[train]"``. The parts are imported from their own modules,
because prediction reads checkpoints without waiting for Lightning to load:

* :mod:`~gcsa_ext.inference.checkpoint`: :func:`save_checkpoint`, :func:`load_checkpoint`.
* :mod:`~gcsa_ext.training.fit`: :func:`train` does all of it.
* :mod:`~gcsa_ext.training.module`, :mod:`~gcsa_ext.training.datamodule`: for one's own ``lightning.Trainer``.
* :mod:`~gcsa_ext.inference.evaluation`, :mod:`~gcsa_ext.inference.metrics`, :mod:`~gcsa_ext.inference.plots`.
"""
