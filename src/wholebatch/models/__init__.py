"""Small models for the recipes, each on one screen, and ``build``, which makes one by name with seeded weights: these,
or timm's, torchvision's and anybody's by import path."""

from wholebatch.models.contrastive import Contrastive as Contrastive
from wholebatch.models.contrastive import SupervisedContrastive as SupervisedContrastive
from wholebatch.models.contrastive import encode as encode
from wholebatch.models.cost import Cost as Cost
from wholebatch.models.cost import cost as cost
from wholebatch.models.foreign import FROM_DATA as FROM_DATA
from wholebatch.models.foreign import is_foreign as is_foreign
from wholebatch.models.foreign import with_head as with_head
from wholebatch.models.lenet import LeNet as LeNet
from wholebatch.models.mlp import MLP as MLP
from wholebatch.models.registry import MODELS as MODELS
from wholebatch.models.registry import build as build
from wholebatch.models.registry import options_of as options_of
from wholebatch.models.resnet import ResNet as ResNet
from wholebatch.models.resnet import resnet18 as resnet18
from wholebatch.models.resnet import resnet20 as resnet20
from wholebatch.models.resnet import resnet56 as resnet56
from wholebatch.models.resnet9 import ResNet9 as ResNet9
from wholebatch.models.small_cnn import SmallCNN as SmallCNN
from wholebatch.models.transformer import TransformerLM as TransformerLM
from wholebatch.models.vit import ViT as ViT
