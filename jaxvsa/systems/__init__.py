"""Systems by name; nothing registers itself on import."""

from __future__ import annotations

import importlib
from types import ModuleType

from jaxvsa.core.errors import UserError, nearest

NAMES = ("vccsa", "mtransllama", "clevereward")


def module(name: str) -> ModuleType:
    """The module `system.py` of a system: its `Facts` and `build(config, facts) -> System`.

    Raises:
        UserError: no such system.
    """
    if name not in NAMES:
        raise UserError(f"unknown system '{name}'; known: {', '.join(NAMES)}{nearest(name, NAMES)}")
    return importlib.import_module(f"jaxvsa.systems.{name}.system")
