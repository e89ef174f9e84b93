"""The two parts: training and validation."""

from __future__ import annotations

from wholebatch.data.imagenet.base import ImageNetBase
from wholebatch.data.imagenet.devkit import GroundTruth
from wholebatch.data.imagenet.listing import kept_list, list_path
from wholebatch.data.imagenet.places import TRAIN, VALIDATION, Part, archive_of, cache_folder, root_of, unpacked
from wholebatch.data.imagenet.unpack import unpack_train, unpack_validation


class ImageNetTrain(ImageNetBase):
    """The training part: ``train/<synset>/<image>`` below ``data_root``, or ``ILSVRC2012_img_train.tar``.

    The archive is unpacked once, to ``train``. The crop's place is drawn, unless ``random_crop`` is false. See
    :class:`ImageNetBase`.
    """

    section = "ImageNetTrain"
    part: Part = TRAIN

    @property
    def random_crop(self) -> bool:
        """True unless the configuration says otherwise."""
        return self.settings.random_crop is not False

    @property
    def expected_length(self) -> int:
        """How many images the whole part has."""
        return self.part.images

    def _prepare(self) -> None:
        """Find the tree, or unpack the archive to it; then list the images."""
        self.root = root_of(self.data_root)
        found = unpacked(self.root, self.part)
        if found is None:
            archive, found = archive_of(self.root, self.part), self.root / self.part.folder
            unpack_train(archive, found)
        self.datadir = found
        self.relpaths = kept_list(found, list_path(found, cache_folder()))


class ImageNetValidation(ImageNetBase):
    """The validation part: ``val`` below ``data_root``, sorted into classes or flat, or ``ILSVRC2012_img_val.tar``.

    Where the images are not sorted into folders of classes, the development kit says what they are. The archive is
    unpacked once, to ``val/<synset>/<image>``. The crop is the centre, unless ``random_crop`` is true. See
    :class:`ImageNetBase`.
    """

    section = "ImageNetValidation"
    part: Part = VALIDATION

    @property
    def expected_length(self) -> int:
        """How many images the whole part has."""
        return self.part.images

    def _prepare(self) -> None:
        """Find the tree, or unpack the archive to it; then list the images."""
        self.root = root_of(self.data_root)
        self._truth = GroundTruth(self.root)
        found = unpacked(self.root, self.part)
        if found is None:
            archive, found = archive_of(self.root, self.part), self.root / self.part.folder
            unpack_validation(archive, found, self._truth)
        self.datadir = found
        self.relpaths = kept_list(found, list_path(found, cache_folder()))

    def _synset(self, relpath: str) -> str:
        """Return the synset of an image: the folder it is in, or what the development kit says."""
        return super()._synset(relpath) if "/" in relpath else self._truth(relpath)
