"""The operators as torch.library knows them (torch.ops.gcsa_ext.*), one file each; call them through
gcsa_ext.functional."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
