"""The configuration of an ImageNet data set: nothing, a dict or an OmegaConf node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from wholebatch.core.errors import ConfigError, InputTypeError, nearest
from wholebatch.data.imagenet.subset import parse_indices

SECTIONS = ("ImageNetTrain", "ImageNetValidation")


@dataclass(frozen=True)
class Settings:
    """What the keys of a configuration say; see :class:`wholebatch.data.ImageNetBase`."""

    size: int = 256
    random_crop: bool | None = None  # None: in training, and not in validation
    crop_size: int | None = None  # None: size
    sub_indices: Any = None  # None: all classes
    keep_orig_class_label: bool = False
    process_images: bool = True
    on_error: str = "raise"

    @property
    def crop(self) -> int:
        """The side of the image that is cut out."""
        return self.size if self.crop_size is None else self.crop_size

    @property
    def indices(self) -> list[int] | None:
        """The class numbers that ``sub_indices`` names, or None for all."""
        return None if self.sub_indices is None else parse_indices(self.sub_indices)


def as_dict(config: Any) -> dict[str, Any]:
    """Return a configuration as a plain dict.

    Raises:
        InputTypeError: it is none.
    """
    if config is None:
        return {}
    from omegaconf import DictConfig, OmegaConf

    plain = OmegaConf.to_container(config, resolve=True) if isinstance(config, DictConfig) else config
    if not isinstance(plain, Mapping):
        raise InputTypeError(
            f"config is a {type(config).__name__}; give None, a dict or an OmegaConf node with keys such as size"
        )
    return {str(key): value for key, value in plain.items()}


def read(config: Mapping[str, Any], section: str) -> Settings:
    """Return the settings in ``config``; what is in its group ``section`` goes before what is outside.

    Raises:
        ConfigError: an unknown key (the nearest is named), or a value that cannot be used.
    """
    own = {key: value for key, value in config.items() if key not in SECTIONS}
    for name in SECTIONS:
        group = config.get(name)
        if group is not None and not isinstance(group, Mapping):
            raise ConfigError(f"{name}={group!r}: expected a group of keys, such as random_crop")
        _check_names(group or {})
        own.update(group or {} if name == section else {})
    _check_names(own)
    settings = Settings(**own)
    _check_values(settings)
    return settings


def _check_names(given: Mapping[str, Any]) -> None:
    known = [field.name for field in fields(Settings)]
    for key in given:
        if key not in known:
            hint = nearest(str(key), known) or f"; there are {', '.join(known)}"
            raise ConfigError(f"ImageNet's config has no key {key!r}{hint}")


def _check_values(settings: Settings) -> None:
    for name, optional in (("size", False), ("crop_size", True)):
        value = getattr(settings, name)
        if not (optional and value is None) and (type(value) is not int or not 1 <= value <= 1 << 14):
            raise ConfigError(f"{name}={value!r}: expected a whole number of pixels, 1 to {1 << 14}")
    for name, optional in (("random_crop", True), ("keep_orig_class_label", False), ("process_images", False)):
        value = getattr(settings, name)
        if not (optional and value is None) and not isinstance(value, bool):
            raise ConfigError(f"{name}={value!r}: expected true or false")
    if settings.crop > settings.size:
        raise ConfigError(
            f"crop_size={settings.crop_size} is larger than size={settings.size}: the image's smaller side has "
            "size pixels when it is cropped; raise size or lower crop_size"
        )
    if settings.on_error not in ("raise", "skip"):
        hint = nearest(str(settings.on_error), ("raise", "skip"))
        raise ConfigError(f"on_error={settings.on_error!r}: expected 'raise' or 'skip'{hint}")
    _ = settings.indices
