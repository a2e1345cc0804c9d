"""Configuration: a file and its overrides become a ConfigDict, a section becomes an object.

`configs/<system>.py` has `get_config(variant="demo") -> ConfigDict` and, beside it, `VARIANTS` by
name. Overrides are parsed by `ml_collections.config_flags`, one at a time and with private flags,
so that each failure is one line about the argument that caused it.
"""

import dataclasses
import importlib.util
import json
import re
import traceback
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from absl import flags
from ml_collections import ConfigDict, config_flags

from jaxvsa.core.errors import UserError, nearest

T = TypeVar("T")

_OVERRIDE = re.compile(r"--config\.([^=]+)(?:=(.*))?", re.DOTALL)


def load_config(spec: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """The locked configuration that a command line asks for.

    Args:
        spec: `configs/vccsa.py:paper` (a file), or `vccsa:paper` (the copy that comes with the
            package); without `:variant` the file's own default.
        overrides: raw arguments such as `--config.optim.lr=1e-4`; of two for one key the last wins.

    Raises:
        UserError: no such file or variant, an error inside the file, an unknown key at any depth,
            a value of the wrong type, an argument that is no override.
    """
    path, variant = _locate(spec)
    module = _load(path)
    known = sorted(getattr(module, "VARIANTS", ()))
    if variant and known and variant not in known:
        raise UserError(
            f"unknown variant '{variant}' of {path}; known: {', '.join(known)}"
            f"{nearest(variant, known)}"
        )
    try:
        config = module.get_config(variant) if variant else module.get_config()
    except Exception as error:
        raise _blame(path, error) from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: get_config must return a ConfigDict, not {_name(type(config))}")
    for argument in overrides:
        _override(config, argument)
    return config.lock()


def variants(spec: str) -> list[str]:
    """Sorted names of the variants a configuration file lists; empty if it has no `VARIANTS`."""
    return sorted(getattr(_load(_locate(spec)[0]), "VARIANTS", ()))


def build(cls: type[T], section: Mapping[str, Any], path: str = "config.model", **given: Any) -> T:
    """An instance of a dataclass or Linen module, with every name and type checked.

    The annotations of the fields are the schema: int (bool is none), float (int is one), bool,
    str, Literal, tuples (from lists too), dict[str, ...], `X | None`, nested dataclasses and
    modules. Linen's own fields `parent` and `name` are no configuration.

    Args:
        cls: the class.
        section: values by field name; a field with a default may be left out.
        path: where the section stands, for the error text.
        **given: fields that the program sets (facts of the data, precision), unchecked.

    Raises:
        UserError: unknown key, missing key, wrong type, or a key that the program sets.
    """
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    if _is_module(cls):
        del fields["parent"], fields["name"]
    for key in section:
        if key in given:
            raise UserError(f"{path}.{key} is set by the program; remove it")
        if key not in fields:
            raise UserError(f"unknown key {path}.{key}{_hint(key, fields.keys() - given)}")
    kinds = typing.get_type_hints(cls)
    values = {}
    for key, field in fields.items():
        if key in section:
            values[key] = _convert(kinds[key], section[key], f"{path}.{key}")
        elif key not in given and _is_required(field):
            raise UserError(f"missing key {path}.{key}, {_spell(kinds[key])}")
    return cls(**values, **given)


def to_plain(config: Mapping[str, Any] | ConfigDict) -> dict[str, Any]:
    """Nested dict of JSON values; tuples become lists, placeholders their values.

    Raises:
        UserError: a value that JSON cannot hold; its key is named.
    """
    tree = config.to_dict() if isinstance(config, ConfigDict) else config
    return {str(key): _json(value, f"config.{key}") for key, value in tree.items()}


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What distinguishes the configuration of a run (`old`) from the one asked for (`new`).

    Returns:
        one line per key, sorted: `"optim.lr: 0.0001 here, 5e-05 in the run"`.
    """
    before, now = dict(_leaves(to_plain(old))), dict(_leaves(to_plain(new)))
    return [
        f"{key}: {_value(now, key)} here, {_value(before, key)} in the run"
        for key in sorted(before.keys() | now.keys())
        if _value(now, key) != _value(before, key)
    ]


def _locate(spec: str) -> tuple[Path, str]:
    """File and variant ("" = the file's default) of a spec."""
    name, _, variant = spec.partition(":")
    if name.endswith(".py"):
        path = Path(name)
        if not path.is_file():
            siblings = [str(other) for other in sorted(path.parent.glob("*.py"))]
            raise UserError(f"config file {name} does not exist{nearest(name, siblings)}")
        return path, variant
    package = Path(__file__).parents[1]
    folders = (package / "configs", package.parent / "configs")  # a wheel, a checkout
    folder = next((folder for folder in folders if folder.is_dir()), folders[0])
    known = sorted(path.stem for path in folder.glob("*.py"))
    if name not in known:
        raise UserError(
            f"no config '{name}' in the package; known: {', '.join(known)}{nearest(name, known)}; "
            "a file of your own must end in .py"
        )
    return folder / f"{name}.py", variant


def _load(path: Path) -> types.ModuleType:
    """The configuration file as a module, executed anew."""
    source = importlib.util.spec_from_file_location(f"jaxvsa_config_{path.stem}", path)
    assert source is not None and source.loader is not None
    module = importlib.util.module_from_spec(source)
    try:
        source.loader.exec_module(module)
    except Exception as error:
        raise _blame(path, error) from error
    if not callable(getattr(module, "get_config", None)):
        raise UserError(f"{path} has no function get_config(variant)")
    return module


def _blame(path: Path, error: Exception) -> UserError:
    """One line for an error inside a configuration file: the file, the line, the reason."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, SyntaxError):
        line = f" line {error.lineno}" if error.lineno else ""
        return UserError(f"{error.filename or path}{line}: {error.msg}")
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename) == path]
    where = f"{path} line {lines[-1]}" if lines else str(path)
    return UserError(f"{where}: {_name(type(error))}: {error}")


def _override(config: ConfigDict, argument: str) -> None:
    """Sets one key of `config` from one raw argument."""
    match = _OVERRIDE.fullmatch(argument)
    if match is None:
        raise UserError(f"unknown argument {argument}; a setting is written --config.key=value")
    *sections, last = match[1].split(".")
    holder, path = config, "config"
    for key in (*sections, last):
        if not isinstance(holder, ConfigDict):
            raise UserError(f"unknown key {path}.{key}: {path} is a value, not a section")
        if key not in holder:
            raise UserError(f"unknown key {path}.{key}{_hint(key, holder)}")
        parent, holder, path = holder, holder[key], f"{path}.{key}"
    if isinstance(holder, ConfigDict):
        raise UserError(f"{path} is a section; set one of its keys: {', '.join(sorted(holder))}")
    kind = parent.get_type(last)
    if kind not in (bool, int, float, str, tuple):
        raise UserError(f"{path} is a {_name(kind)}: it is set in the file, not by {argument}")
    values = flags.FlagValues()
    command = ["jaxvsa", argument]
    try:
        config_flags.DEFINE_config_dict(
            "config", config, lock_config=True, flag_values=values, sys_argv=command
        )
        values(command)
    except config_flags.config_flags.UnsupportedOperationError as error:
        kind = _name(parent.get_type(last))
        raise UserError(f"{path} is a {kind}: it is set in the file, not by {argument}") from error
    except (flags.Error, AttributeError, TypeError, ValueError) as error:
        got = f"'{match[2]}'" if match[2] is not None else "no value"
        raise UserError(f"{path}: expected {_name(kind)}, got {got}") from error
    if isinstance(holder, tuple) and holder:  # config_flags does not look inside tuples
        parent[last] = _convert(
            types.GenericAlias(tuple, (type(holder[0]), ...)), parent[last], path
        )


def _hint(name: str, known: Iterable[str]) -> str:
    """The nearest of the known keys, or all of them."""
    return nearest(str(name), known) or f"; known: {', '.join(sorted(known))}"


def _is_module(cls: type) -> bool:
    """True for Linen modules."""
    from flax import linen as nn  # 1.6 s that `--help` need not wait for

    return issubclass(cls, nn.Module)


def _is_required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _convert(kind: Any, value: Any, path: str) -> Any:
    """`value` as a `kind`; the recursive half of `build`."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        return build(typing.cast(type, kind), value, path)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(args, value, path)
    if origin is Literal and any(value == arg and type(value) is type(arg) for arg in args):
        return value
    if origin is tuple and isinstance(value, list | tuple):
        kinds = args[:1] * len(value) if args[-1] is Ellipsis else args
        if len(kinds) == len(value):
            pairs = enumerate(zip(kinds, value, strict=True))
            return tuple(_convert(item, one, f"{path}[{at}]") for at, (item, one) in pairs)
    if origin in (dict, Mapping) and isinstance(value, Mapping):
        return {str(key): _convert(args[1], one, f"{path}.{key}") for key, one in value.items()}
    if kind is float and type(value) in (int, float):
        return float(value)
    if kind in (int, bool, str) and type(value) is kind:
        return value
    hint = nearest(str(value), map(str, args)) if origin is Literal else ""
    raise UserError(f"{path}: expected {_spell(kind)}, got {value!r}{hint}")


def _convert_union(kinds: Sequence[Any], value: Any, path: str) -> Any:
    """The first of `kinds` that accepts `value`; a single one keeps its own, deeper error."""
    if value is None and types.NoneType in kinds:
        return None
    inner = [kind for kind in kinds if kind is not types.NoneType]
    for kind in inner:
        try:
            return _convert(kind, value, path)
        except UserError:
            if len(inner) == 1:
                raise
    raise UserError(f"{path}: expected {' or '.join(map(_spell, kinds))}, got {value!r}")


def _spell(kind: Any) -> str:
    """A type in the words of an error text."""
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(kind)))
    return f"a section ({_name(kind)})" if dataclasses.is_dataclass(kind) else _name(kind)


def _name(kind: Any) -> str:
    return "None" if kind is types.NoneType else getattr(kind, "__name__", str(kind))


def _json(value: Any, path: str) -> Any:
    """`value` in the types that JSON gives back."""
    if isinstance(value, Mapping):
        return {str(key): _json(one, f"{path}.{key}") for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_json(one, f"{path}[{at}]") for at, one in enumerate(value)]
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise UserError(f"{path}: a {_name(type(value))} cannot be stored in config.json")


def _leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield path + key, value


def _value(leaves: Mapping[str, Any], key: str) -> str:
    return json.dumps(leaves[key]) if key in leaves else "not set"
