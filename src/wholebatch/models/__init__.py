"""Small models for the recipes, each on one screen, and ``build``, which makes one by name with seeded weights."""

from wholebatch.models.lenet import LeNet as LeNet
from wholebatch.models.mlp import MLP as MLP
from wholebatch.models.registry import MODELS as MODELS
from wholebatch.models.registry import build as build
from wholebatch.models.small_cnn import SmallCNN as SmallCNN
