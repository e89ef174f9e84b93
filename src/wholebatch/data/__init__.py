"""Data sets and their loaders: the embedded digits, data in memory, whole batches in an order that is a function of
seed and epoch, streams with their weaker promise, and transforms whose random draws are keyed by sample."""

from wholebatch.data.adapt import as_dataset as as_dataset
from wholebatch.data.arrays import ArrayDataset as ArrayDataset
from wholebatch.data.augment import ShiftRotate as ShiftRotate
from wholebatch.data.choose import as_loader as as_loader
from wholebatch.data.embedded import digits as digits
from wholebatch.data.imagenet import ImageNetBase as ImageNetBase
from wholebatch.data.imagenet import ImageNetTrain as ImageNetTrain
from wholebatch.data.imagenet import ImageNetValidation as ImageNetValidation
from wholebatch.data.loader import BatchLoader as BatchLoader
from wholebatch.data.order import epoch_order as epoch_order
from wholebatch.data.select import Select as Select
from wholebatch.data.stream import StreamLoader as StreamLoader
from wholebatch.data.transform import Compose as Compose
from wholebatch.data.transform import Normalize as Normalize
from wholebatch.data.transform import Transform as Transform
from wholebatch.data.window import Window as Window
