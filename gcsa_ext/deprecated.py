"""The import paths of version 0.1.0: each gives the objects of the new path, with a DeprecationWarning.

A finder on sys.meta_path creates an old module when it is imported. Old modules do not exist before that:
tools that ask every module in sys.modules for a name, as pickle does, would trigger their imports and
warnings.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

REMOVED_IN = "0.3.0"

MOVED: dict[str, tuple[str, ...]] = {
    "gcsa_ext.data": ("gcsa_ext.corpora", "gcsa_ext.media"),
    "gcsa_ext.data.atomic": ("gcsa_ext.atomic",),
    "gcsa_ext.data.clips": ("gcsa_ext.corpora.clips", "gcsa_ext.corpora.dataset"),
    "gcsa_ext.data.emotions": ("gcsa_ext.corpora.labels",),
    "gcsa_ext.data.extra": ("gcsa_ext.extra",),
    "gcsa_ext.data.faces": ("gcsa_ext.media.faces",),
    "gcsa_ext.data.manifest": ("gcsa_ext.corpora.manifest",),
    "gcsa_ext.data.spectrogram": ("gcsa_ext.media.spectrogram",),
    "gcsa_ext.data.synthetic": ("gcsa_ext.corpora.synthetic.corpus", "gcsa_ext.corpora.synthetic.clip"),
    "gcsa_ext.data.synthetic_face": ("gcsa_ext.corpora.synthetic.face",),
    "gcsa_ext.data.synthetic_voice": ("gcsa_ext.corpora.synthetic.voice",),
    "gcsa_ext.data.video": ("gcsa_ext.media", "gcsa_ext.media.orientation"),
    "gcsa_ext.prediction": (
        "gcsa_ext.inference.predictor",
        "gcsa_ext.inference.rows",
        "gcsa_ext.inference.tables",
        "gcsa_ext.inference.bins",
    ),
    "gcsa_ext.training.checkpoint": ("gcsa_ext.inference.checkpoint",),
    "gcsa_ext.training.demo": ("gcsa_ext.cli.demo",),
    "gcsa_ext.training.evaluation": ("gcsa_ext.inference.evaluation",),
    "gcsa_ext.training.metrics": ("gcsa_ext.inference.metrics",),
    "gcsa_ext.training.plots": ("gcsa_ext.inference.plots",),
    "gcsa_ext.training.report": ("gcsa_ext.inference.report",),
}
"""For each old module, the modules that have its names now."""


class _OldModule(ModuleType):
    """A module that looks up its names in the new modules, and warns at each use of a name."""

    def __getattr__(self, name: str) -> Any:
        if f"{self.__name__}.{name}" in MOVED:
            return importlib.import_module(f"{self.__name__}.{name}")
        # Tools ask every module for special names such as __file__, which must not import the new modules.
        special = name.startswith("__") and name != "__all__"
        modules = [] if special else [importlib.import_module(new) for new in MOVED[self.__name__]]
        if name == "__all__":  # read by `from module import *`
            return [public for new in modules for public in getattr(new, name, vars(new)) if public[0] != "_"]
        for new in modules:
            if hasattr(new, name):
                # `from package import name` first calls hasattr(package, name) in importlib's
                # _handle_fromlist, which is not a use of the name, and then gets it.
                if sys._getframe(1).f_code.co_name != "_handle_fromlist":
                    warnings.warn(
                        f"{self.__name__}.{name} is now {new.__name__}.{name}; "
                        f"the old path will be removed in gcsa_ext {REMOVED_IN}",
                        DeprecationWarning,
                        stacklevel=2,
                    )
                return getattr(new, name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


class OldPaths(MetaPathFinder, Loader):
    """The finder and loader of the old modules, which have no files."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in MOVED:
            return None
        is_package = any(old.startswith(f"{fullname}.") for old in MOVED)
        return ModuleSpec(fullname, self, is_package=is_package)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _OldModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass
