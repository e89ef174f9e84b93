"""MixUp and CutMix, against what they are by definition on the whole batch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import wholebatch as wb
from wholebatch.core.errors import DataError
from wholebatch.data import BatchLoader, Compose, CutMix, HorizontalFlip, Mix, MixUp, Normalize

SAMPLES, CLASSES = 29, 4
BYTES = torch.randint(0, 256, (SAMPLES, 3, 8, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(SAMPLES) % CLASSES
MIXES = {"mixup": MixUp(CLASSES), "cutmix": CutMix(CLASSES), "both": Mix(CLASSES, 0.4, 1.0)}


@pytest.fixture(params=list(MIXES))
def mix(request):
    return MIXES[request.param]


def plan_of(mix, samples=SAMPLES, **changed):
    return mix.plan(torch.arange(samples), **{"seed": 0, "epoch": 0, "place": 0, **changed})


def test_every_pixel_and_target_by_definition(mix):
    plan = plan_of(mix)
    images = BYTES.double()
    mixed, soft = mix.apply((images, LABELS), (images[plan.partners], LABELS[plan.partners]), plan)
    seen = set()
    for number in range(SAMPLES):
        one, two = images[number], images[plan.partners[number]]
        share, (y, x) = float(plan.shares[number]), plan.boxes[number].tolist()
        if plan.cut[number]:
            height, width = int(8 * math.sqrt(1 - share)), int(6 * math.sqrt(1 - share))
            top, left = int(y * 8) - height // 2, int(x * 6) - width // 2
            expected = one.clone()
            rows, columns = slice(max(0, top), max(0, top + height)), slice(max(0, left), max(0, left + width))
            expected[:, rows, columns] = two[:, rows, columns]
            share = 1 - two[0, rows, columns].numel() / 48
        else:
            expected = one * share + two * (1 - share)
        torch.testing.assert_close(mixed[number], expected, atol=1e-4, rtol=0)
        target = share * F.one_hot(LABELS[number], CLASSES) + (1 - share) * F.one_hot(
            LABELS[plan.partners[number]], CLASSES
        )
        torch.testing.assert_close(soft[number].double(), target.double(), atol=1e-7, rtol=0)
        seen.add(bool(plan.cut[number]))
    assert seen == {"MixUp": {False}, "CutMix": {True}, "Mix": {False, True}}[type(mix).__name__]


def test_targets_add_to_exactly_one(mix):
    plan = plan_of(mix, 5000)
    images = torch.zeros(5000, 1, 7, 9)
    _, soft = mix.apply((images, torch.arange(5000) % 4), (images, torch.arange(5000) % 3), plan)
    assert soft.dtype == torch.float32
    assert torch.equal(soft.double().sum(1), torch.ones(5000, dtype=torch.float64))
    assert soft.min() >= 0
    assert 0.1 < (soft.max(1).values < 1).float().mean() <= 1


def test_a_cutmix_target_is_the_share_of_the_pixels():
    plan = plan_of(MIXES["cutmix"], 200)
    white, black = torch.ones(200, 1, 16, 16), torch.zeros(200, 1, 16, 16)
    zeros, ones = torch.zeros(200, dtype=torch.int64), torch.ones(200, dtype=torch.int64)
    mixed, soft = CutMix(2).apply((white, zeros), (black, ones), plan)
    assert torch.equal(soft[:, 0], mixed.mean((1, 2, 3)))
    assert soft[:, 0].std() > 0.1


def test_the_loss_is_the_weighted_sum_of_two():
    mix, plan = MIXES["both"], plan_of(MIXES["both"])
    images = torch.randn(SAMPLES, 3, 8, 6, dtype=torch.float64)
    partners = LABELS[plan.partners]
    mixed, soft = mix.apply((images, LABELS), (images[plan.partners], partners), plan)
    logits = nn.Linear(144, CLASSES).double()(mixed.flatten(1))
    first, second = (F.cross_entropy(logits, t, reduction="none") for t in (LABELS, partners))
    _, shares = mix._boxes(plan, 8, 6)
    expected = (shares * first + (1 - shares) * second).mean()
    assert F.cross_entropy(logits, soft).item() == pytest.approx(expected.item(), abs=1e-7)


def test_partners_are_a_permutation_of_the_whole_batch_and_follow_seed_epoch_and_place(mix):
    numbers = torch.arange(100, 100 + SAMPLES)
    plan = mix.plan(numbers, seed=0, epoch=0, place=0)
    assert plan.partners.sort().values.tolist() == numbers.tolist()
    again = mix.plan(numbers, seed=0, epoch=0, place=0)
    assert all(torch.equal(getattr(plan, name), getattr(again, name)) for name in vars(plan))
    for other in ({"seed": 1}, {"epoch": 1}, {"place": SAMPLES}):
        changed = mix.plan(numbers, **{"seed": 0, "epoch": 0, "place": 0, **other})
        assert not torch.equal(changed.partners, plan.partners)
        assert not torch.equal(changed.shares, plan.shares)


def test_every_batch_of_every_epoch_is_mixed_in_its_own_way():
    asked = []

    class Noting(MixUp):
        def plan(self, indices, **place):
            asked.append((len(indices), place))
            return super().plan(indices, **place)

    loader = BatchLoader((BYTES, LABELS), 8, seed=7, mix=Noting(CLASSES))
    for _ in range(2):
        list(loader)
    places = [(8, 0), (8, 8), (8, 16), (5, 24)]
    assert asked == [(n, {"seed": 7, "epoch": e, "place": place}) for e in (0, 1) for n, place in places]


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_shares_are_of_the_beta_distribution(alpha):
    shares = plan_of(MixUp(2, alpha), 20000).shares
    assert shares.mean() == pytest.approx(0.5, abs=0.015)
    assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.04)
    both = plan_of(Mix(2, alpha, 1.0), 20000)
    assert both.cut.double().mean() == pytest.approx(0.5, abs=0.02)
    assert both.shares[both.cut].var() == pytest.approx(1 / 12, rel=0.04)


def test_partners_are_augmented_as_their_own_samples():
    """Without a share of its own left, a sample becomes what its partner is in the same epoch without mixing."""
    augment = Compose(HorizontalFlip(), Normalize(0.2, 0.3))
    mix = MixUp(CLASSES)
    original = mix.plan
    plans = []

    def plan(*args, **place):
        made = original(*args, **place)
        plans.append(made)
        made.shares.zero_()
        return made

    mix.plan = plan
    plain = {}
    for images, numbers in BatchLoader((BYTES, torch.arange(SAMPLES)), 8, seed=2, transform=augment):
        plain.update(zip(numbers.tolist(), images, strict=True))
    mixed = BatchLoader((BYTES, LABELS), 8, seed=2, transform=augment, mix=mix)
    for (images, soft), made in zip(mixed, plans_of(plans), strict=False):
        for image, target, partner in zip(images, soft, made.partners.tolist(), strict=True):
            assert torch.equal(image, plain[partner])
            assert target.argmax() == LABELS[partner]


def plans_of(plans):
    """The plans as they are made."""
    number = 0
    while number < len(plans):
        yield plans[number]
        number += 1


@pytest.mark.parametrize("fetched", ["arrays", "one by one"])
def test_each_sample_is_fetched_once_per_micro_batch(fetched):
    asked = []

    class Samples(torch.utils.data.Dataset):
        def __len__(self):
            return SAMPLES

        def __getitem__(self, number):
            asked.append(number)
            return BYTES[number], int(LABELS[number])

    loaders = [
        BatchLoader(data, 8, seed=2, mix=MixUp(CLASSES))
        for data in ((BYTES, LABELS), Samples() if fetched == "one by one" else (BYTES, LABELS))
    ]
    for one, two in zip(*loaders, strict=True):
        assert torch.equal(one[0], two[0])
        assert torch.equal(one[1], two[1])
    assert sorted(asked) == (list(range(SAMPLES)) if fetched == "one by one" else [])


def test_dict_batches_with_names_beside():
    mix = MixUp(CLASSES, field="image", target="class_label")
    data = [{"image": BYTES[n].float(), "class_label": int(LABELS[n]), "relpath": f"{n}.jpg"} for n in range(SAMPLES)]
    for batch in BatchLoader(data, 8, mix=mix, shuffle=False):
        assert len(batch["relpath"]) == len(batch["image"]) == len(batch["class_label"])
        first = int(batch["relpath"][0].removesuffix(".jpg"))
        assert batch["relpath"] == [f"{first + k}.jpg" for k in range(len(batch["image"]))]
        assert batch["class_label"].shape[1] == CLASSES


def test_targets_that_are_probabilities_are_mixed_as_they_are():
    plan = plan_of(MIXES["mixup"])
    soft = torch.rand(SAMPLES, CLASSES)
    _, mixed = MIXES["mixup"].apply((BYTES, soft), (BYTES[plan.partners], soft[plan.partners]), plan)
    share = plan.shares.float().unsqueeze(1)
    torch.testing.assert_close(mixed, soft * share + soft[plan.partners] * (1 - share))


def test_training_is_that_of_the_whole_batch(mix):
    def weights(micro_batch):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(144, 16), nn.Tanh(), nn.Linear(16, CLASSES)).double()
        loader = BatchLoader((BYTES.double() / 255, LABELS), 11, mix=mix)
        history = wb.train(
            model,
            loader,
            loss=nn.CrossEntropyLoss(label_smoothing=0.1),
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            epochs=2,
            micro_batch=micro_batch,
            eval_data=(BYTES.double() / 255, LABELS),
            display=False,
        )
        assert "accuracy" in history.last("test")
        return nn.utils.parameters_to_vector(model.parameters()).detach()

    whole = weights(11)
    for micro_batch in (1, 4):
        assert (weights(micro_batch) - whole).abs().max() < 1e-13
    assert (whole - torch.zeros_like(whole)).norm() > 1


@pytest.mark.parametrize(
    ("make", "answer"),
    [
        (lambda: Mix(4), "needs the alpha"),
        (lambda: MixUp(4, -1), "alpha of mixup"),
        (lambda: CutMix(4, math.inf), "alpha of cutmix"),
        (lambda: MixUp(1), "at least 2 classes"),
        (lambda: MixUp(3).apply((BYTES, LABELS), (BYTES, LABELS), plan_of(MixUp(3))), "from 0 to 2, got 0 to 3"),
        (lambda: MixUp(3).apply(BYTES, BYTES, plan_of(MixUp(3))), "the batch is one tensor"),
        (lambda: MixUp(3).apply((BYTES[0], LABELS), (BYTES[0], LABELS), plan_of(MixUp(3))), "Mix takes images"),
        (
            lambda: MixUp(4).apply((BYTES, LABELS[:, None]), (BYTES, LABELS[:, None]), plan_of(MixUp(4))),
            r"a class number per sample, or probabilities; got \(29, 1\)",
        ),
    ],
)
def test_refusals(make, answer):
    with pytest.raises(DataError, match=answer):
        make()
