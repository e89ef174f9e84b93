"""The recipes that come with the library: folders of ``wholebatch/recipes`` with a ``config.yaml``."""

from __future__ import annotations

from importlib.resources import files

from wholebatch.core.errors import ConfigError, nearest

DEFAULT = "digits"


def recipe_names() -> list[str]:
    """Return the names of all recipes.

    >>> {"digits", "text"} <= set(recipe_names())
    True
    """
    folders = files("wholebatch").joinpath("recipes").iterdir()
    return sorted(folder.name for folder in folders if folder.joinpath("config.yaml").is_file())


def recipe_text(name: str) -> str:
    """Return the ``config.yaml`` of a recipe.

    Raises:
        ConfigError: there is no recipe of this name.
    """
    known = recipe_names()
    if name not in known:
        hint = nearest(name, known) or f"; recipes: {', '.join(known)}"
        if name.endswith((".yaml", ".yml")):
            hint = f"; for a file of your own, write -c {name}"
        raise ConfigError(f"there is no recipe {name!r}{hint}")
    return files("wholebatch").joinpath("recipes", name, "config.yaml").read_text(encoding="utf-8")
