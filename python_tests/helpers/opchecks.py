"""torch's checks of an operator: schema, autograd registration, shape rule, and compilation."""

from __future__ import annotations

import torch


def opcheck(name: str, *arguments: object) -> None:
    result = torch.library.opcheck(getattr(torch.ops.gcsa_ext, name).default, arguments)
    assert set(result.values()) == {"SUCCESS"} and len(result) == 4
