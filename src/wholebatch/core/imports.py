"""Other people's code by its import path, and one line about what is missing where it cannot be imported."""

from __future__ import annotations

import inspect
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

from wholebatch.core.errors import ConfigError, nearest

_EXTRAS = {"timm": "timm", "torchvision": "torchvision", "safetensors": "export"}  # which extra installs a package


def module(name: str) -> ModuleType:
    """Return the module ``name``.

    Raises:
        ConfigError: it is not installed (with the command that installs it), or importing it fails. Torchvision beside
            a torch of another build is told apart, since its own message does not say what is wrong.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if missing == name or name.startswith(f"{missing}."):
            raise ConfigError(_absent(name, missing)) from error
        raise ConfigError(f"importing {name} fails, since {missing} is missing: {_install(missing)}") from error
    except Exception as error:
        if "torchvision::" in str(error):
            raise ConfigError(other_build(name)) from error
        reason = " ".join(str(error).split()[:40])
        raise ConfigError(f"importing {name} fails: {type(error).__name__}: {reason}") from error


def thing(path: str) -> Any:
    """Return what ``package.module:name`` names.

    >>> thing("math:floor")(1.5)
    1

    Raises:
        ConfigError: the path is not of this form, or there is no such module or name (the nearest is named).
    """
    where, colon, name = path.partition(":")
    if not (colon and all(part.isidentifier() for part in (*where.split("."), *name.split(".")))):
        raise ConfigError(f"{path!r} is no import path; write package.module:name")
    found: Any = module(where)
    for part in name.split("."):
        if not hasattr(found, part):
            known = [other for other in dir(found) if not other.startswith("_")]
            raise ConfigError(f"{path}: {where} has no {part!r}{nearest(part, known)}")
        found = getattr(found, part)
    return found


def call(path: str, make: Any, arguments: dict[str, Any]) -> Any:
    """Return ``make(**arguments)``.

    Raises:
        ConfigError: it does not take one of the arguments (the nearest is named), or refuses a value.
    """
    known = parameters(make)
    for name in arguments:
        if known is not None and name not in known:
            hint = nearest(name, known) or f"; it takes {', '.join(known) or 'none'}"
            raise ConfigError(f"{path} does not take {name}{hint}")
    try:
        return make(**arguments)
    except (TypeError, ValueError, ArithmeticError, AssertionError, RuntimeError) as error:
        reason = " ".join(str(error).split()[:40])
        raise ConfigError(f"{path} cannot be made with {arguments}: {type(error).__name__}: {reason}") from error


def parameters(make: Any) -> list[str] | None:
    """Return the names of the arguments that ``make`` takes, or None where it takes any, or does not tell.

    >>> parameters(nearest), parameters(dict)
    (['name', 'known'], None)
    """
    try:
        found = inspect.signature(make).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(one.kind is one.VAR_KEYWORD for one in found):
        return None
    return [one.name for one in found if one.kind not in (one.POSITIONAL_ONLY, one.VAR_POSITIONAL)]


def other_build(name: str) -> str:
    """Return the line that names the two builds where torchvision was built for another torch than is installed."""
    return (
        f"importing {name} fails: torchvision {_version('torchvision')} was built for another torch than the "
        f"{_version('torch')} installed here, so its operators are missing; install both from one place, with one pip "
        "command and one --index-url"
    )


def _absent(name: str, missing: str) -> str:
    if missing != name and missing not in _EXTRAS:
        return f"there is no module {name}, since there is no {missing}: {_install(missing)}"
    return f"{missing} is not installed: {_install(missing)}"


def _install(missing: str) -> str:
    package = missing.partition(".")[0]
    return f"pip install 'wholebatch[{_EXTRAS[package]}]'" if package in _EXTRAS else "install the package that has it"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(of unknown version)"
