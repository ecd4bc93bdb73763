"""The contracts of the operators torch.ops.gcsa_ext.*, one file each. Users call gcsa_ext.functional."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
