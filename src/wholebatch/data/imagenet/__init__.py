"""ImageNet (ILSVRC 2012), from the official archives or an unpacked tree, in the style of latent-diffusion and
taming-transformers: items are dicts, settings a config."""

from wholebatch.data.imagenet.base import ImageNetBase as ImageNetBase
from wholebatch.data.imagenet.parts import ImageNetTrain as ImageNetTrain
from wholebatch.data.imagenet.parts import ImageNetValidation as ImageNetValidation
