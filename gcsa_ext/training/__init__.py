"""Training of the two-modality network with Lightning.

Needs the extra ``[train]``: ``pip install ".[train]"``. Import from the modules of this package:

* :mod:`~gcsa_ext.training.fit`: :func:`train`, a whole training in one call.
* :mod:`~gcsa_ext.training.module`, :mod:`~gcsa_ext.training.datamodule`: for another ``lightning.Trainer``.
"""
