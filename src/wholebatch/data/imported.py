"""Any data set of one's own, by its import path ``package.module:name``."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

from wholebatch.core.errors import DataError, nearest
from wholebatch.data.adapt import as_dataset, has_random_access


def find(path: str) -> Callable[..., Any]:
    """Return what ``package.module:name`` names; the current folder is looked in as well, as Python's own ``-m`` does.

    Raises:
        DataError: there is no such module or name, or it cannot be called.

    >>> find("collections:OrderedDict")
    <class 'collections.OrderedDict'>
    """
    module, _, name = path.partition(":")
    try:
        found = _module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except AttributeError:
        hint = nearest(name, [item for item in dir(found) if not item.startswith("_")])
        raise DataError(f"{path}: {module} has no {name!r}{hint}") from None
    except ImportError as error:
        raise DataError(f"{path} cannot be imported: {error}; expected package.module:name") from error
    if not callable(found):
        raise DataError(f"{path} is a {type(found).__name__}; expected a class or function that makes a data set")
    return found


def make(path: str, split: str, root: str | None = None, **arguments: Any) -> Any:
    """Return the data set that the class or function at ``path`` makes for ``split``.

    It is called with ``split="train"`` or ``"test"``, or, where it takes ``train`` instead, as torchvision's do, with
    ``train=True`` or ``False``; with ``root`` where that is given; and with ``arguments``.

    Raises:
        DataError: it cannot be imported, takes neither ``split`` nor ``train``, refuses what it was given, or what it
            makes is no map-style data set.
    """
    factory = find(path)
    known = parameters(factory)
    given = dict(arguments)
    if known is None or "split" in known:
        given["split"] = split
    elif "train" in known:
        given["train"] = split == "train"
    else:
        raise DataError(f"{path} takes neither split nor train, so it cannot say which part is for testing")
    if root is not None:
        given["root"] = root
    try:
        made = as_dataset(factory(**given))
    except Exception as error:
        raise DataError(f"{path} made no data set for {split!r}: {type(error).__name__}: {error}") from error
    if not has_random_access(made):
        raise DataError(f"{path} made a {type(made).__name__} without __len__ and __getitem__")
    return made


def parameters(factory: Callable[..., Any]) -> set[str] | None:
    """Return the names of the arguments that ``factory`` takes, or None where it takes any."""
    try:
        known = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return None
    if any(item.kind is inspect.Parameter.VAR_KEYWORD for item in known.values()):
        return None if "train" not in known else {*known}
    return {*known}


def _module(name: str) -> Any:
    if not all(part.isidentifier() for part in name.split(".")):
        raise ImportError(f"{name!r} is no module's name")
    here = os.getcwd()
    added = here not in sys.path
    if added:
        sys.path.append(here)
    try:
        return importlib.import_module(name)
    finally:
        if added and here in sys.path:
            sys.path.remove(here)
