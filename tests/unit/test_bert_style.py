"""Batches as fine-tuning has them: dicts and lists of tensors, texts of uneven length, few labels that count."""

from __future__ import annotations

import copy
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import wholebatch as wb

BAR = 1e-12
LENGTHS = [3, 20, 5, 9, 17, 3, 12, 20, 7, 4, 11]
LONGEST = 24
MASK = 4  # the token that stands for what is to be guessed


class Encoder(nn.Module):
    """Attention in both directions that leaves padding out; called as transformers' models are."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = dropout
        self.words, self.places = nn.Embedding(50, 8), nn.Embedding(LONGEST, 8)
        self.qkv, self.head = nn.Linear(8, 24), nn.Linear(8, 50)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.words(input_ids) + self.places.weight[: input_ids.shape[1]]
        x = F.dropout(x, self.dropout, self.training)
        q, k, v = self.qkv(x).unsqueeze(1).chunk(3, -1)
        x = x + F.scaled_dot_product_attention(q, k, v, attention_mask[:, None, None].bool()).squeeze(1)
        return self.head(x)


def made(kind: str, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(1)
    if kind == "own":
        return Encoder(dropout).double()
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed (extra: transformers)")
    from transformers import BertConfig, BertForMaskedLM

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    config = BertConfig(vocab_size=50, max_position_embeddings=LONGEST, initializer_range=0.3, **sizes, **rates)
    return BertForMaskedLM(config).double()


KINDS = pytest.mark.parametrize("kind", ["own", "transformers"])


def texts() -> list[dict[str, Tensor]]:
    """Samples as a tokenizer gives them; to be guessed is every fourth token of the even ones, one of others."""
    draws, samples = torch.Generator().manual_seed(2), []
    for number, length in enumerate(LENGTHS):
        ids = torch.randint(5, 50, (length,), generator=draws)
        guessed = torch.arange(length) % (4 if number % 2 == 0 else 100) == 1
        labels = ids.where(guessed, torch.tensor(-100))
        samples.append({"input_ids": ids.masked_fill(guessed, MASK), "labels": labels})
    return samples


def padded(samples: list[dict[str, Tensor]], length: int | None = LONGEST) -> dict[str, Tensor]:
    """One dict of (samples, length); without a length, of the longest of these."""
    most = length or max(len(sample["labels"]) for sample in samples)

    def column(name: str, value: int) -> Tensor:
        return torch.stack([F.pad(sample[name], (0, most - len(sample[name])), value=value) for sample in samples])

    ids, labels = column("input_ids", 0), column("labels", -100)
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": labels}


def logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    return getattr(output, "logits", output).transpose(1, 2)


def pair(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Unreduced losses, and which of them count."""
    labels = batch["labels"]
    return F.cross_entropy(logits(model, batch), labels, reduction="none"), (labels != -100).double()


def own_mean(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """What a model of transformers gives by itself, and the number that it divided by."""
    return model(**batch).loss, (batch["labels"] != -100).sum()


def of_list(model: nn.Module, batch: list[Tensor]) -> tuple[Tensor, Tensor]:
    assert isinstance(batch, list)
    return pair(model, dict(zip(("input_ids", "attention_mask", "labels"), batch, strict=True)))


def gradient(model: nn.Module) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


def exact(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Torch's own loss on the whole batch at once."""
    model = copy.deepcopy(model)
    F.cross_entropy(logits(model, batch), batch["labels"]).backward()
    return gradient(model)


def stepped(model: nn.Module, batch: Any, loss: Any, micro_batch: int) -> Tensor:
    model = copy.deepcopy(model)
    wb.Step(model, torch.optim.SGD(model.parameters(), lr=0.1), loss, micro_batch=micro_batch)(batch)
    return gradient(model)


@KINDS
def test_dicts(kind: str) -> None:
    model, batch = made(kind), padded(texts())
    truth = exact(model, batch)
    for micro_batch in (1, 3, 4, 11):
        assert (stepped(model, batch, pair, micro_batch) - truth).norm() < BAR * truth.norm()
    naive = torch.stack([exact(model, padded(texts()[start : start + 4])) for start in (0, 4, 8)]).mean(0)
    assert (naive - truth).norm() > 0.05 * truth.norm()


@KINDS
def test_lists(kind: str) -> None:
    model, batch = made(kind), padded(texts())
    truth = exact(model, batch)
    assert (stepped(model, list(batch.values()), of_list, 3) - truth).norm() < BAR * truth.norm()


def test_the_mean_that_the_model_gives() -> None:
    model, batch = made("transformers"), padded(texts())
    truth = exact(model, batch)
    for micro_batch in (1, 4):
        found = stepped(model, batch, own_mean, micro_batch)
        assert (found - truth).norm() < 1e-6 * truth.norm()  # these models compute their loss in float32


def trained(model: nn.Module, data: Any, loss: Any, micro_batch: int, batch_size: int | None = 4) -> Tensor:
    model = copy.deepcopy(model)
    options = {} if batch_size is None else {"batch_size": batch_size}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    history = wb.train(
        model, data, loss=loss, optimizer=optimizer, epochs=2, micro_batch=micro_batch, display=False, **options
    )
    assert history.last("train")["step"] == 6
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@KINDS
def test_training_on_dicts_in_memory_is_the_same_in_any_micro_batch(kind: str) -> None:
    model, data = made(kind, dropout=0.2), padded(texts())
    truth = trained(model, data, pair, 4)
    for micro_batch in (1, 3):
        assert (trained(model, data, pair, micro_batch) - truth).norm() < BAR * truth.norm()
    still = trained(made(kind), data, pair, 4)
    assert (still - truth).norm() > 1e-3 * truth.norm()  # dropout happens


def test_training_on_lists_of_a_data_loader() -> None:
    model, data = made("own"), TensorDataset(*padded(texts()).values())
    loader = DataLoader(data, batch_size=4)
    truth = trained(model, loader, of_list, 4, None)
    assert (trained(model, loader, of_list, 1, None) - truth).norm() < BAR * truth.norm()


@KINDS
def test_texts_padded_to_the_longest_of_their_micro_batch(kind: str) -> None:
    """Without dropout that is the same; with it only a common length is, since masks are drawn by place and shape."""

    def short(samples: list[Any]) -> dict[str, Tensor]:
        return padded(samples, None)

    def loader(collate: Any) -> wb.data.BatchLoader:
        return wb.data.BatchLoader(texts(), 4, collate=collate)

    model = made(kind)
    truth = trained(model, loader(padded), pair, 4, None)
    for micro_batch in (1, 3):
        assert (trained(model, loader(short), pair, micro_batch, None) - truth).norm() < BAR * truth.norm()
    dropping = made(kind, dropout=0.3)
    truth = trained(dropping, loader(padded), pair, 4, None)
    assert (trained(dropping, loader(padded), pair, 1, None) - truth).norm() < BAR * truth.norm()
    assert (trained(dropping, loader(short), pair, 1, None) - truth).norm() > 1e-3 * truth.norm()  # as the page says


def test_a_micro_batch_without_a_label_that_counts() -> None:
    model, batch = made("own"), padded(texts())
    batch["labels"][3:6] = -100
    truth = exact(model, batch)
    assert (stepped(model, batch, pair, 3) - truth).norm() < BAR * truth.norm()


@pytest.mark.filterwarnings("ignore")  # what other packages warn of is their own affair
def test_the_lines_of_the_page() -> None:
    """The block of docs/text.md, and the same weights in one micro-batch, without dropout."""
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed (extra: transformers)")
    page = (Path(__file__).parents[2] / "docs" / "text.md").read_text("utf-8")
    (source,) = (block for block in re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S) if "transformers" in block)
    names: dict[str, Any] = {"torch": torch, "wb": wb}
    exec(compile(source, "docs/text.md", "exec"), names)
    history, labels = names["history"], names["data"]["labels"]
    assert history.last("train")["step"] == 6
    assert 0 < history.last("train")["loss"] < 6
    counts = (labels != -100).sum(1)
    assert len(counts.unique()) > 2  # uneven, so that there is something to be exact about
    assert (names["data"]["attention_mask"].sum(1).diff() != 0).all()
