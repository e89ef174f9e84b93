import copy
import math
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from wholebatch import Accuracy, DataError, InputError, InputTypeError

NAN = float("nan")
WIDE = 5000  # more classes than a table is kept for


def batch(n: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(classes, (n,), generator=generator)
    logits = torch.randn(n, classes, generator=generator, dtype=torch.float64)
    logits[torch.arange(0, n, 2), targets[::2]] += 3
    return logits, targets


def oracle(logits: Tensor, targets: Tensor, classes: int) -> Tensor:
    confusion = torch.zeros(classes, classes, dtype=torch.int64)
    for true, predicted in zip(targets.tolist(), logits.argmax(1).tolist(), strict=True):
        confusion[true, predicted] += 1
    return confusion


@pytest.mark.parametrize("size", [1, 7, 100, 256, 9000])
def test_against_the_whole_at_once(size: int) -> None:
    logits, targets = batch(10_000, 7, 0)
    end = {1: 300, 7: 1400}.get(size, 10_000)
    logits, targets = logits[:end], targets[:end]
    accuracy = Accuracy(7)
    for start in range(0, end, size):
        rows, labels = logits[start : start + size].clone(), targets[start : start + size].clone()
        accuracy.add(rows, labels)
        rows.zero_()  # the caller's tensors are the caller's
        labels.zero_()
    confusion = oracle(logits, targets, 7)
    assert torch.equal(accuracy.confusion, confusion)
    assert accuracy.confusion.dtype == torch.int64
    assert accuracy.count == end
    assert accuracy.value == confusion.diagonal().sum().item() / end
    recall = confusion.diagonal().double() / confusion.sum(1)
    torch.testing.assert_close(accuracy.per_class, recall, rtol=1e-15, atol=0)
    assert accuracy.balanced == pytest.approx(recall.mean().item(), rel=1e-15)
    assert accuracy.topk == {1: accuracy.value}


def test_many_classes_keep_vectors() -> None:
    logits, targets = batch(400, WIDE, 1)
    wide = Accuracy(WIDE, ignore_index=3, topk=(1, 5))
    for start in range(0, 400, 150):
        wide.add(logits[start : start + 150], targets[start : start + 150])
    wide.add(torch.full((3, WIDE), NAN), torch.tensor([0, 1, 3]))
    hits = logits.argmax(1) == targets
    assert wide.count == 402
    assert wide.nan_count == 2
    assert wide.value == hits.sum().item() / 402
    one = int(targets[0])
    seen = targets == one
    assert wide.per_class[one].item() == (hits & seen).sum().item() / (seen.sum().item() + (one in (0, 1)))
    assert wide.topk[5] == (logits.topk(5, 1).indices == targets[:, None]).sum().item() / 402
    with pytest.raises(InputError, match="up to 4096 classes, and this has 5000"):
        wide.confusion  # noqa: B018
    wide.add(torch.full((2, WIDE), NAN), torch.tensor([-1, WIDE]))
    assert wide.nan_count == 2, "rows with a wrong label are reported as that"
    with pytest.raises(DataError, match=r"2 of 404 targets are outside 0 … 4999 \(1 below, 1 above\)"):
        wide.value  # noqa: B018


def test_table_is_kept_up_to_4096_classes() -> None:
    limit = Accuracy(4096)
    limit.add(torch.tensor([4095, 0]), torch.tensor([4095, 4095]))
    assert limit.confusion[4095].nonzero().flatten().tolist() == [0, 4095]


@pytest.mark.parametrize("classes", [3, WIDE])
def test_wrong_labels_raise_when_read(classes: int) -> None:
    accuracy = Accuracy(classes)
    for wrong in (-1, classes, classes + 1, -100, 2**40):
        accuracy.add(torch.zeros(1, classes), torch.tensor([wrong]))  # not here
    accuracy.add(torch.zeros(2, classes), torch.tensor([0, 1]))
    for read in ("value", "count", "per_class", "balanced", "topk"):
        with pytest.raises(DataError, match=re.escape("5 of 7 targets are outside 0") + ".*2 below, 3 above"):
            getattr(accuracy, read)
    assert "out_of_range=5" in repr(accuracy)
    accuracy.reset()
    accuracy.add(torch.zeros(2, classes), torch.tensor([0, 1]))
    assert accuracy.value == 0.5


@pytest.mark.parametrize("classes", [3, WIDE])
def test_wrong_predicted_labels_raise_when_read(classes: int) -> None:
    accuracy = Accuracy(classes, ignore_index=-100)
    accuracy.add(torch.tensor([classes, 1]), torch.tensor([-100, 1]))
    assert accuracy.value == 1.0, "a row that does not count is not looked at"
    accuracy.add(torch.tensor([-1, classes, 1]), torch.tensor([0, 1, 1]))
    with pytest.raises(DataError, match="2 of 4 predicted labels are outside 0"):
        accuracy.value  # noqa: B018


@pytest.mark.parametrize("batches", [1, 60])
def test_nan_is_a_wrong_answer_and_is_reported(batches: int) -> None:
    accuracy = Accuracy(3, ignore_index=-1)
    rows = torch.tensor([[NAN, 0.0, 0.0], [5.0, NAN, 0.0], [5.0, 0.0, -float("inf")], [0.0, NAN, 0.0]])
    for _ in range(batches):
        accuracy.add(rows, torch.tensor([0, 1, 0, -1]))
    assert (accuracy.count, accuracy.nan_count, accuracy.value) == (3 * batches, 2 * batches, 1 / 3)
    assert accuracy.confusion.sum() == batches
    assert accuracy.per_class[:2].tolist() == [0.5, 0.0]
    assert f"nan_count={2 * batches}" in repr(accuracy)


@pytest.mark.parametrize("ignored", [-100, 0, 2, 7])
def test_ignored_targets_do_not_count(ignored: int) -> None:
    logits, targets = batch(300, 3, 2)
    targets[::7] = ignored
    accuracy = Accuracy(3, ignore_index=ignored)
    for _ in range(40):
        accuracy.add(logits, targets)
    keep = targets != ignored
    assert torch.equal(accuracy.confusion, 40 * oracle(logits[keep], targets[keep], 3))


def test_masks() -> None:
    logits, targets = batch(300, 3, 3)
    mask = torch.arange(300) % 3 != 0
    targets[~mask] = 99  # whatever is outside a mask does not matter
    accuracy = Accuracy(3)
    accuracy.add(logits, targets, mask)
    accuracy.add(logits[mask], targets[mask])
    kept = mask.clone()
    mask.fill_(True)
    assert torch.equal(accuracy.confusion, 2 * oracle(logits[kept], targets[kept], 3))
    tokens = Accuracy(2)
    tokens.add(torch.tensor([[0, 1], [1, 1]]), torch.tensor([[0, 0], [1, 0]]), mask=torch.tensor([True, False]))
    assert tokens.confusion.tolist() == [[1, 1], [0, 0]]
    with pytest.raises(InputError, match="mask of shape"):
        tokens.add(torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), torch.tensor([True]))
    with pytest.raises(InputTypeError, match="bools"):
        tokens.add(torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), torch.ones(3))


def test_topk() -> None:
    logits, targets = batch(500, 10, 4)
    accuracy = Accuracy(10, topk=(1, 2, 5, 10))
    for start in range(0, 500, 90):
        accuracy.add(logits[start : start + 90], targets[start : start + 90])
    for k in (1, 2, 5, 10):
        expected = (logits.topk(k, 1).indices == targets[:, None]).any(1).double().mean().item()
        assert accuracy.topk[k] == pytest.approx(expected, rel=1e-15)
    ties = Accuracy(3, topk=(1, 2))
    ties.add(torch.zeros(3, 3), torch.arange(3))
    assert ties.topk == {1: 1 / 3, 2: 2 / 3}, "equals rank in the order of their classes"
    ties.add(torch.tensor([[NAN, 1.0, 2.0]] * 3), torch.tensor([0, 1, 2]))
    assert ties.topk == {1: 1 / 6, 2: 2 / 6}, "a row with NaN is never among the first"
    assert Accuracy(3, topk=2).topk.keys() == {2}  # type: ignore[arg-type]
    with pytest.raises(InputError, match="needs logits of shape"):
        ties.add(torch.arange(3), torch.arange(3))


def test_shapes_and_kinds() -> None:
    accuracy = Accuracy(2)
    accuracy.add(torch.tensor([[[0.0], [1.0]], [[1.0], [0.0]]]), torch.tensor([[1], [0]]))  # (n, C, 1), (n, 1)
    accuracy.add(torch.tensor([0.0, 1.0]), torch.tensor(1))  # one sample
    accuracy.add(np.array([0, 1]), [0, 1])
    accuracy.add(torch.tensor([True, False]), torch.tensor([1, 0], dtype=torch.uint8))
    accuracy.add(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64))
    accuracy.add(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64))
    accuracy.add(torch.tensor([[0.0, 1.0]], dtype=torch.float16), torch.tensor([1], dtype=torch.int32))
    accuracy.add(torch.tensor([[0, 1]]), torch.tensor([1]))
    assert (accuracy.value, accuracy.count) == (1.0, 9)
    deep, targets = torch.randn(4, 2, 3, 5), torch.randint(2, (4, 3, 5))
    pixels = Accuracy(2)
    pixels.add(deep, targets)
    assert pixels.value == (deep.argmax(1) == targets).double().mean().item()


def test_repeated_batches_of_changing_kinds() -> None:
    logits, targets = batch(96, 3, 5)
    accuracy, plan = Accuracy(3), []
    for turn in range(30):
        n = (96, 96, 96, 32, 32, 1)[turn % 6]
        dtype = torch.float32 if turn % 5 else torch.float64
        accuracy.add(logits[:n].to(dtype), targets[:n])
        accuracy.add(logits[:n].argmax(1), targets[:n].int())
        plan.append(2 * oracle(logits[:n].to(dtype), targets[:n], 3))
    assert torch.equal(accuracy.confusion, torch.stack(plan).sum(0))


def test_wrong_use_is_said() -> None:
    accuracy, labels = Accuracy(3), torch.zeros(4, dtype=torch.int64)
    for predicted, targets, error, text in [
        (torch.zeros(4, 2), labels, InputError, r"logits for these targets have shape \(4, 3\)"),
        (torch.zeros(5, 3), labels, InputError, r"predicted has shape \(5, 3\)"),
        (torch.zeros(5), labels, InputError, "labels of the targets' shape"),
        (torch.zeros(4), labels, InputTypeError, "labels are integers"),
        (torch.zeros(4, 3), labels.double(), InputTypeError, r"targets are class numbers; got torch.float64"),
        (torch.zeros(4, 3), torch.zeros(4, 3), InputTypeError, "argmax"),
        (torch.zeros(4, 3), labels[:, None], InputError, "predicted has shape"),
        ("abc", labels, InputTypeError, "predicted is a tensor, array or list"),
    ]:
        for _ in range(2):
            with pytest.raises(error, match=text):
                accuracy.add(predicted, targets)
    assert accuracy.count == 0
    for _ in range(3):
        accuracy.add(torch.zeros(4, 3), labels)  # by now batches of this shape have a buffer
    with pytest.raises(InputError, match="logits for these targets"):
        accuracy.add(torch.zeros(4, 3), labels[:1])
    assert accuracy.count == 12
    for arguments in ((0,), (3, None, (0,)), (3, None, (4,))):
        with pytest.raises(InputError):
            Accuracy(*arguments)  # type: ignore[arg-type]
    with pytest.raises(InputTypeError):
        Accuracy(2.5)  # type: ignore[arg-type]


def test_nothing_counted() -> None:
    accuracy = Accuracy(3)
    assert math.isnan(accuracy.value)
    assert math.isnan(accuracy.balanced)
    assert accuracy.per_class.isnan().all()
    assert (accuracy.count, accuracy.nan_count, int(accuracy.confusion.sum())) == (0, 0, 0)
    assert repr(accuracy) == "Accuracy(3 classes, value=nan, count=0)"
    accuracy.add(torch.tensor([1, 1]), torch.tensor([1, 0]))
    assert accuracy.balanced == 0.5, "the third class has no sample"


@pytest.mark.parametrize("classes", [4, WIDE])
def test_merge_state_and_copies(classes: int, tmp_path: Path) -> None:
    logits, targets = batch(300, classes, 6)
    whole, left, right = (Accuracy(classes, topk=(1, 3)) for _ in range(3))
    whole.add(logits, targets)
    left.add(logits[:111], targets[:111])
    right.add(logits[111:], targets[111:])
    torch.save(left.state_dict(), tmp_path / "state.pt")
    loaded = Accuracy(classes, topk=(1, 3))
    loaded.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    loaded.add(logits[111:], targets[111:])
    copies = [left + right, copy.copy(left).merge(right), pickle.loads(pickle.dumps(left)) + right, loaded]
    copies += [whole.all_reduce(), Accuracy(classes, topk=(1, 3)) + whole, whole + Accuracy(classes, topk=(1, 3))]
    for one in copies:
        assert (one.value, one.count, one.topk) == (whole.value, 300, whole.topk)
        one.add(logits, targets)
        assert one.count == 600
    assert (left.count, right.count, whole.count) == (111, 189, 300)
    with pytest.raises(InputError, match="cannot be merged"):
        whole.merge(Accuracy(classes))
    with pytest.raises(InputError, match="cannot be loaded"):
        Accuracy(classes, ignore_index=1, topk=(1, 3)).load_state_dict(left.state_dict())


def test_reset_keeps_the_storage_and_copies_mid_stream() -> None:
    logits, targets = batch(64, 3, 7)
    accuracy = Accuracy(3)
    for _ in range(5):
        accuracy.add(logits, targets)
    twin = copy.deepcopy(accuracy)
    twin.add(logits, targets)
    assert (accuracy.count, twin.count) == (320, 384)
    pointer = accuracy._counts.data_ptr()  # type: ignore[union-attr]
    accuracy.add(logits, targets)
    accuracy.reset()
    assert accuracy.count == 0
    accuracy.add(logits, targets)
    assert accuracy.count == 64
    assert accuracy._counts.data_ptr() == pointer  # type: ignore[union-attr]
