"""From a configuration to everything a run reads, whatever its system."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxvsa.core.errors import UserError
from jaxvsa.systems import module

KINDS = {"vccsa": "comments", "mtransllama": "questions"}
"""System -> the module beside this one that knows what it reads."""


def kind(system: str) -> ModuleType:
    """The module that reads the data of a system.

    Each has `assemble`, `Batching`, `find_root`, `read_codec` and `read_params`.

    Raises:
        UserError: no such system.
    """
    module(system)  # says what is wrong with the name
    return importlib.import_module(f"jaxvsa.workflows.{KINDS[system]}")


def assemble(config: Mapping[str, Any], run: Path) -> Any:
    """Opens the data, tokenizer and weights of a configuration.

    Args:
        config: plain values, as the configuration file and the command line give them.
        run: where a demo corpus goes.

    Raises:
        UserError: anything that the user can mend, in one line.
    """
    if not isinstance(config.get("system"), str):
        raise UserError("config.system is missing; it names the system, as in configs/vccsa.py")
    return kind(config["system"]).assemble(config, run)
