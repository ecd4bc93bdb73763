"""A compiled module that cannot be used: gcsa_ext works without it, and info() has the reason."""

from __future__ import annotations

import pytest
from subprocesses import python

LOADER = """
    class Loader:
        def find_spec(self, name, path, target=None):
            if name == "gcsa_ext._C":
                return importlib.machinery.ModuleSpec(name, self)
        def create_module(self, spec):
            return None
        def exec_module(self, module):
            raise {error}
    sys.meta_path.insert(0, Loader())
"""
UNUSABLE = {
    "module of another build": (
        'sys.modules["gcsa_ext._C"] = types.ModuleType("gcsa_ext._C")',
        "has no attribute 'use_torch'",
    ),
    "no lock": (
        "sys._is_gil_enabled = lambda: False",
        "global interpreter lock, which PYTHON_GIL=0 or -X gil=0",
    ),
    **{
        error: (LOADER.format(error=error), "undefined symbol")
        for error in (
            "ImportError('undefined symbol')",
            "OSError('undefined symbol')",
            "RuntimeError('undefined symbol')",
            "type('Foreign', (Exception,), {})('undefined symbol')",
        )
    },
}


@pytest.mark.parametrize(("preparation", "reason"), UNUSABLE.values(), ids=UNUSABLE)
def test_an_unusable_module(preparation: str, reason: str) -> None:
    printed = python(
        f"""
    import importlib.machinery, sys, types, warnings
    sys.modules["triton"] = None  # takes long to import
    {preparation}
    import torch, gcsa_ext
    info = gcsa_ext.info()
    assert info["build"] is None and info["isa"] is None
    assert info["backends"]["cpu"]["cpu"] == info["load_error"]
    print(info["load_error"])
    assert "missing: " + info["load_error"] in gcsa_ext.format_info()
    module, x = gcsa_ext.GCSA(8).eval(), torch.randn(2, 8, 5, 6, requires_grad=True)
    with gcsa_ext.use_backend("reference"):
        expected = module(x)
    with warnings.catch_warnings(record=True) as caught:
        found = module(x)
    assert len(caught) == 1 and info["load_error"] in str(caught[0].message)
    assert torch.equal(found, expected)
    found.sum().backward()
    assert x.grad.isfinite().all()
    """
    )
    assert printed.startswith("the compiled module gcsa_ext._C cannot be loaded: ") and reason in printed
