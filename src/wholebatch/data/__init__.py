"""Data sets and their loaders: the embedded digits, data in memory, whole batches in an order that is a function of
seed and epoch, loaded in worker processes where asked for, streams with their weaker promise, augmentation whose random
draws are keyed by sample, and readers of CIFAR, MNIST, ImageNet, folders, lists, Hugging Face data sets and text."""

from wholebatch.data.adapt import as_dataset as as_dataset
from wholebatch.data.arrays import ArrayDataset as ArrayDataset
from wholebatch.data.augment import ShiftRotate as ShiftRotate
from wholebatch.data.callables import PerBatch as PerBatch
from wholebatch.data.callables import PerSample as PerSample
from wholebatch.data.callables import by_path as by_path
from wholebatch.data.choose import as_loader as as_loader
from wholebatch.data.cifar import cifar10 as cifar10
from wholebatch.data.cifar import cifar100 as cifar100
from wholebatch.data.colour import ColorJitter as ColorJitter
from wholebatch.data.crop import RandomCrop as RandomCrop
from wholebatch.data.crop import RandomResizedCrop as RandomResizedCrop
from wholebatch.data.cutout import Cutout as Cutout
from wholebatch.data.embedded import digits as digits
from wholebatch.data.flip import HorizontalFlip as HorizontalFlip
from wholebatch.data.folder import image_folder as image_folder
from wholebatch.data.huggingface import hugging_face as hugging_face
from wholebatch.data.imagefiles import ImageFiles as ImageFiles
from wholebatch.data.imagenet import ImageNetBase as ImageNetBase
from wholebatch.data.imagenet import ImageNetTrain as ImageNetTrain
from wholebatch.data.imagenet import ImageNetValidation as ImageNetValidation
from wholebatch.data.imageset import ImageDataset as ImageDataset
from wholebatch.data.listing import image_list as image_list
from wholebatch.data.loader import BatchLoader as BatchLoader
from wholebatch.data.mix import CutMix as CutMix
from wholebatch.data.mix import Mix as Mix
from wholebatch.data.mix import MixUp as MixUp
from wholebatch.data.mnist import fashion_mnist as fashion_mnist
from wholebatch.data.mnist import mnist as mnist
from wholebatch.data.order import epoch_order as epoch_order
from wholebatch.data.parquet import ParquetImages as ParquetImages
from wholebatch.data.select import Select as Select
from wholebatch.data.statistics import Statistics as Statistics
from wholebatch.data.statistics import channel_statistics as channel_statistics
from wholebatch.data.stream import StreamLoader as StreamLoader
from wholebatch.data.text import TextDataset as TextDataset
from wholebatch.data.text import text as text
from wholebatch.data.transform import Compose as Compose
from wholebatch.data.transform import Normalize as Normalize
from wholebatch.data.transform import Transform as Transform
from wholebatch.data.window import Window as Window
