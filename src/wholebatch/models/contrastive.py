"""A small model for contrastive learning, and the supervised contrastive loss of a whole batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wholebatch.models.small_cnn import SmallCNN


class Contrastive(nn.Module):
    """A small convolutional encoder with two heads: a projection, which the contrastive loss sees, and a probe.

    The probe is a linear layer that tells the classes from the encoder's features; its gradient stops there, so that
    it says what the features are worth without having a part in them (as in Chen et al. 2020, arXiv:2002.05709).

    Args:
        num_classes: length of the probe's output.
        in_channels: channels of the images.
        image_size: their height and width in pixels, a multiple of 2.
        width: channels of the first convolution, a multiple of 4.
        features: length of the encoder's output.
        projection: length of the projection.
        dropout: rate in the encoder.

    Shapes:
        (samples, in_channels, image_size, image_size) to (samples, num_classes).
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        image_size: int = 8,
        width: int = 20,
        features: int = 128,
        projection: int = 32,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.encoder = SmallCNN(features, in_channels, image_size, width, dropout)
        self.projection = nn.Sequential(nn.ReLU(), nn.Linear(features, projection))
        self.probe = nn.Linear(features, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the probe's logits."""
        return self.probe(self.encoder(images).detach())

    def represent(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the projections, (samples, projection) of length 1 each, and the probe's logits."""
        found = self.encoder(images)
        return F.normalize(self.projection(found), dim=1), self.probe(found.detach())


class SupervisedContrastive(nn.Module):
    """Draws samples of one class together and pushes all others away; and trains the probe.

    With unit vectors z, temperature τ, and P(i) the other samples of i's class, the mean over all i that have any of ::

        −1/|P(i)| · Σ_{p in P(i)} log( exp(z_i·z_p / τ) / Σ_{a ≠ i} exp(z_i·z_a / τ) )

    (Khosla et al. 2020, "Supervised Contrastive Learning", arXiv:2004.11362, equation 2), plus the cross-entropy of the
    probe. It compares every sample with every other one, so that it is a loss of the whole batch.

    >>> z = F.normalize(torch.tensor([[1.0, 0], [0, 1], [1, 0]]))
    >>> loss = SupervisedContrastive(temperature=1.0)
    >>> classes = torch.tensor([0, 1, 0])
    >>> round(float(loss(z, F.one_hot(classes) * 100.0, classes)), 4)
    0.3133
    """

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, z: Tensor, logits: Tensor, classes: Tensor) -> Tensor:
        """Return the loss of (samples, length) unit vectors, (samples, classes) logits and (samples,) classes."""
        oneself = torch.eye(len(z), dtype=torch.bool, device=z.device)
        similar = (z @ z.T / self.temperature).masked_fill(oneself, -torch.inf)
        logarithms = similar.log_softmax(dim=1).masked_fill(oneself, 0.0)
        positive = (classes[:, None] == classes) & ~oneself
        count = positive.sum(dim=1)
        has = count > 0
        mean = (logarithms * positive).sum(dim=1) / count.clamp(min=1)
        return -mean.sum() / has.sum().clamp(min=1) + F.cross_entropy(logits, classes)


def encode(model: Contrastive, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return what :class:`SupervisedContrastive` takes of (images, classes)."""
    images, classes = batch
    return (*model.represent(images), classes)
