"""Models of other people: ``timm:resnet50``, ``torchvision:resnet18``, ``package.module:function``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from wholebatch.core import imports
from wholebatch.core.errors import ConfigError, nearest

# What is known of the data (the last two of text), and given where it is taken.
FROM_DATA = ("num_classes", "in_channels", "image_size", "vocabulary", "length")


def is_foreign(name: str) -> bool:
    """Return whether ``name`` is that of somebody else's model."""
    return ":" in name


def make(name: str, options: dict[str, Any]) -> nn.Module:
    """Return somebody else's model.

    Args:
        name: ``timm:…``, ``torchvision:…`` or ``package.module:function``.
        options: what its maker takes. ``pretrained=True`` takes the weights that its library offers;
            ``num_classes``, ``in_channels``, ``image_size``, ``vocabulary`` and ``length`` are passed on where they
            are taken.

    Raises:
        ConfigError: the library is not there or does not load, has no such model, refuses an option, or cannot fetch
            the weights.
    """
    library, _, model = name.partition(":")
    options = dict(options)
    pretrained = options.pop("pretrained", False)
    if not isinstance(pretrained, bool):
        raise ConfigError(f"{name}: pretrained={pretrained!r}; expected true or false")
    maker = _MAKERS.get(library)
    made = maker(name, model, pretrained, options) if maker else _by_path(name, pretrained, options)
    if not isinstance(made, nn.Module):
        raise ConfigError(f"{name} gave a {type(made).__name__}; a model is a torch.nn.Module")
    return made


def _timm(name: str, model: str, pretrained: bool, options: dict[str, Any]) -> Any:
    timm = imports.module("timm")
    _known(name, model.partition(".")[0], timm.list_models())
    options.pop("image_size", None)  # models that need it take img_size, which is for the user to say
    if "in_channels" in options:
        options["in_chans"] = options.pop("in_channels")
    return _made(name, pretrained, lambda: timm.create_model(model, pretrained=pretrained, **options))


def _torchvision(name: str, model: str, pretrained: bool, options: dict[str, Any]) -> Any:
    library = imports.module("torchvision.models")
    _known(name, model, library.list_models(module=library))  # classification
    channels, classes = options.pop("in_channels", 3), options.pop("num_classes", None)
    options.pop("image_size", None)
    if channels != 3:
        raise ConfigError(f"{name} takes images of 3 channels, and these have {channels}; timm's models take any")
    if not pretrained:
        options |= {} if classes is None else {"num_classes": classes}
        return _made(name, False, lambda: library.get_model(model, weights=None, **options))
    made = _made(name, True, lambda: library.get_model(model, weights="DEFAULT", **options))
    return made if classes is None else with_head(made, classes, name)


def _by_path(name: str, pretrained: bool, options: dict[str, Any]) -> Any:
    """What ``package.module:function`` makes, given what its signature takes."""
    function = imports.thing(name)
    if not callable(function):
        raise ConfigError(f"{name} is a {type(function).__name__}; a model is made by a class or a function")
    taken = imports.parameters(function)
    if pretrained:
        if taken is not None and "pretrained" not in taken:
            raise ConfigError(f"{name} does not take pretrained; leave it out, or load weights in a function of yours")
        options["pretrained"] = True
    given = {key: value for key, value in options.items() if taken is None or key in taken or key not in FROM_DATA}
    return _made(name, pretrained, lambda: imports.call(name, function, given))


_MAKERS: dict[str, Callable[[str, str, bool, dict[str, Any]], Any]] = {"timm": _timm, "torchvision": _torchvision}


def with_head(model: nn.Module, num_classes: int, name: str = "the model") -> nn.Module:
    """Return ``model`` with its last linear layer made anew for ``num_classes``, where it has another length.

    Raises:
        ConfigError: its last layer with weights is no linear layer.

    >>> with_head(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1000)), 3)[2]
    Linear(in_features=8, out_features=3, bias=True)
    """
    layers = [(path, layer) for path, layer in model.named_modules() if list(layer.parameters(recurse=False))]
    path, last = layers[-1] if layers else ("", model)
    if not isinstance(last, nn.Linear) or not path:
        raise ConfigError(f"{name} ends in a {type(last).__name__}, so its head cannot be replaced; give a function")
    if last.out_features != num_classes:
        parent, _, own = path.rpartition(".")
        new = nn.Linear(last.in_features, num_classes, last.bias is not None)
        setattr(model.get_submodule(parent), own, new)
    return model


def _known(name: str, model: str, there: list[str]) -> None:
    if model not in there:
        library = name.partition(":")[0]
        raise ConfigError(f"{library} has no model {model!r}{nearest(model, there)}")


def _made(name: str, pretrained: bool, call: Callable[[], Any]) -> Any:
    """What ``call`` gives, its errors in one line."""
    try:
        return call()
    except ConfigError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()[:40])
        if pretrained and isinstance(error, OSError):  # no network: URLError and the Hub's errors are of this kind
            raise ConfigError(
                f"the pretrained weights of {name} could not be fetched ({type(error).__name__}: {reason}); without a "
                "network say pretrained=false, or put them into the library's cache"
            ) from error
        raise ConfigError(f"{name} cannot be made: {type(error).__name__}: {reason}") from error
