"""The recipes that come with the library: folders of ``wholebatch/recipes`` with a ``config.yaml``.

A recipe may have presets, ``presets/<name>.yaml`` beside it: settings that are laid over its own.
"""

from __future__ import annotations

from importlib.resources import files

from wholebatch.core.errors import ConfigError, nearest

DEFAULT = "digits"


def recipe_names() -> list[str]:
    """Return the names of all recipes.

    >>> recipe_names()
    ['cifar10', 'cifar100', 'contrastive', 'digits', 'fashion_mnist', 'folder', 'imagenet', 'text']
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


def preset_names(recipe: str) -> list[str]:
    """Return the names of a recipe's presets.

    >>> preset_names("digits")
    []
    """
    folder = files("wholebatch").joinpath("recipes", recipe, "presets")
    if not folder.is_dir():
        return []
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def preset_text(recipe: str, name: str) -> str:
    """Return the text of a preset.

    Raises:
        ConfigError: the recipe has none of this name.
    """
    known = preset_names(recipe)
    if name not in known:
        hint = nearest(name, known) or (f"; presets: {', '.join(known)}" if known else "; it has none")
        raise ConfigError(f"the recipe {recipe} has no preset {name!r}{hint}")
    return files("wholebatch").joinpath("recipes", recipe, "presets", f"{name}.yaml").read_text(encoding="utf-8")
