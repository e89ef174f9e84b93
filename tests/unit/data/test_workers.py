"""Batches made in worker processes: the same bits, errors that name their sample, nobody left behind."""

import gc
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, Subset

import wholebatch as wb
from wholebatch.core.errors import DataError, InputTypeError
from wholebatch.core.record import Observer
from wholebatch.data import ArrayDataset, BatchLoader
from wholebatch.data.ahead import Ahead


@pytest.fixture(autouse=True)
def nobody_is_left():
    """No test may end with a child process, or one more open file (a queue of a worker, say)."""
    assert not multiprocessing.active_children()
    yield
    gc.collect()
    assert not multiprocessing.active_children(), "a worker was left behind"


class Rows(Dataset):
    """Samples that say who made them, and that draw from all three generators."""

    def __len__(self):
        return 23

    def __getitem__(self, index):
        draws = [torch.rand(()).item(), float(np.random.rand()), random.random()]
        return torch.tensor([float(index), *draws], dtype=torch.float64), index, os.getpid()


class Failing(Rows):
    def __init__(self, at=13, error=None, samples=None):
        self.at, self.error = at, error or KeyError("no such thing")
        if samples:
            self.samples = samples

    def __getitem__(self, index):
        if index == self.at:
            raise self.error
        return super().__getitem__(index)


def epochs(loader, count=2, micro_batch=None):
    """Everything that a loader gives, a list per epoch, without who made it."""
    return [
        [torch.cat([piece[0] for piece in window]).tolist() for window in loader.windows(micro_batch)]
        for _ in range(count)
    ]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_same_bits_with_any_number_of_workers_and_any_micro_batch(workers):
    alone = epochs(BatchLoader(Rows(), 10, seed=4))
    draws = [sorted(row for batch in epoch for row in batch) for epoch in alone]
    assert all(one[1:] != other[1:] for one, other in zip(*draws, strict=True))  # anew in every epoch
    assert len({row[1] for batch in alone[0] for row in batch}) == 23
    for micro_batch in (None, 1, 3, 4):
        with BatchLoader(Rows(), 10, seed=4, workers=workers) as loader:
            assert epochs(loader, 2, micro_batch) == alone
    assert epochs(BatchLoader(Rows(), 10, seed=4), 2, 3) == alone
    assert epochs(BatchLoader(Rows(), 10, seed=5)) != alone


def test_workers_do_the_work():
    with BatchLoader(Rows(), 10, workers=2) as loader:
        makers = {number for batch in loader for number in batch[2].tolist()}
        assert len(makers) == 2
        assert os.getpid() not in makers
        again = {number for batch in loader for number in batch[2].tolist()}
        assert again == makers  # they were kept
        assert {child.pid for child in multiprocessing.active_children()} == makers


def test_the_callers_generators_are_left_alone():
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    for workers in (0, 2):
        with BatchLoader(Rows(), 10, workers=workers) as loader:
            list(loader)
        assert torch.equal(torch.get_rng_state(), states[0])
        assert random.getstate() == states[1]
        assert np.random.get_state()[1].tolist() == states[2]


def test_a_subset_is_keyed_as_well():
    subset = Subset(Rows(), list(range(20)))
    assert epochs(BatchLoader(subset, 7, seed=1), 1, 2) == epochs(BatchLoader(subset, 7, seed=1), 1)


def test_images_of_a_folder(folder):
    data = wb.data.image_folder(folder)
    alone = [(images, labels) for images, labels in BatchLoader(data, 5, seed=2)]
    with BatchLoader(data, 5, seed=2, workers=2) as loader:
        for (images, labels), (expected, classes) in zip(loader, alone, strict=True):
            assert torch.equal(images, expected)
            assert torch.equal(labels, classes)


def test_images_of_pillow_become_tensors(picture):
    data = [(picture(0), 3), (picture(1, mode="RGBA"), 4)]
    images, labels = next(iter(BatchLoader(data, 2, shuffle=False)))
    assert (images.dtype, tuple(images.shape), labels.tolist()) == (torch.uint8, (2, 3, 6, 8), [3, 4])


def test_the_state_is_exact_although_workers_run_ahead():
    whole = epochs(BatchLoader(Rows(), 4, seed=3))
    with BatchLoader(Rows(), 4, seed=3, workers=2) as loader:
        windows = loader.windows(2)
        for expected in (4, 8):
            list(next(windows))
            assert (loader.epoch, loader.consumed) == (0, expected)
        state = loader.state_dict()
        windows.close()
    with BatchLoader(Rows(), 4, seed=3, workers=1) as other:
        other.load_state_dict(state)
        assert epochs(other) == [whole[0][2:], whole[1]]


def test_a_for_that_was_left_goes_on_behind_its_batch():
    whole = epochs(BatchLoader(Rows(), 4, seed=3))
    with BatchLoader(Rows(), 4, seed=3, workers=2) as loader:
        for _ in loader:
            break
        assert not multiprocessing.active_children()
        assert epochs(loader) == [whole[0][1:], whole[1]]


def test_windows_again_in_part_and_out_of_order():
    whole = epochs(BatchLoader(Rows(), 10, seed=3), 1)[0]
    with BatchLoader(Rows(), 10, seed=3, workers=2) as loader:
        first, second, third = loader.windows(4)
        pieces = list(second)
        assert torch.cat([piece[0] for piece in pieces]).tolist() == whole[1]
        assert all(os.getpid() not in piece[2].tolist() for piece in pieces)  # those of the first one were dropped
        assert torch.cat([piece[0] for piece in second]).tolist() == whole[1]  # again
        assert torch.cat([piece[0] for piece in first]).tolist() == whole[0]  # behind
        assert third.whole()[0].tolist() == whole[2]  # in another cut


def test_two_iterations_at_once():
    with BatchLoader(Rows(), 10, seed=3, workers=2, shuffle=False) as loader:
        outer = loader.windows()
        first = next(outer)
        inner = loader.windows()
        assert next(inner).whole()[1].tolist() == list(range(10, 20))
        assert first.whole()[1].tolist() == list(range(10))
        outer.close()
        inner.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_names_its_sample(workers):
    loader = BatchLoader(Failing(), 5, shuffle=False, workers=workers)
    seen = []
    with pytest.raises(DataError, match=r"^sample 13 of Failing cannot be read: KeyError: 'no such thing'") as caught:
        seen.extend(batch[1].tolist() for batch in loader)
    assert seen == [list(range(5)), list(range(5, 10))]
    assert not multiprocessing.active_children()
    if workers:
        assert "in __getitem__" in caught.value.__notes__[0]  # the worker's traceback


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_names_the_file(folder, workers):
    (folder / "bee" / "3.png").write_text("no image")
    with (
        BatchLoader(wb.data.image_folder(folder), 4, shuffle=False, workers=workers) as loader,
        pytest.raises(DataError, match=r"sample 8 of ImageFiles: .*bee/3\.png is no image"),
    ):
        list(loader)
    torchvisions = Failing(samples=[(f"{n}.jpg", 0) for n in range(23)])
    with (
        BatchLoader(torchvisions, 23, workers=workers) as loader,
        pytest.raises(DataError, match=r"sample 13 of Failing \(13\.jpg\) cannot be read"),
    ):
        list(loader)


class Unpicklable(Exception):
    def __init__(self, one, two):
        super().__init__(lambda: one)


def test_an_error_that_cannot_travel():
    with (
        BatchLoader(Failing(error=Unpicklable(1, 2)), 5, workers=1) as loader,
        pytest.raises(DataError, match="sample 13 of Failing cannot be read: Unpicklable"),
    ):
        list(loader)


def test_an_error_of_many_at_once_names_the_first():
    class Many(Failing):
        def __getitems__(self, numbers):
            return [self[number] for number in numbers]

    with pytest.raises(DataError, match="one of 5 samples from 10 on of Many cannot be read: KeyError"):
        list(BatchLoader(Many(), 5, shuffle=False))


class Dying(Rows):
    def __getitem__(self, index):
        if index == 13:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


# torch leaves open the socket by which a worker that dies was just handing a tensor over
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_worker_that_dies_is_told_of():
    with (
        BatchLoader(Dying(), 5, shuffle=False, workers=1) as loader,
        # torch's own error where the signal of its death arrives while this process is at something else
        pytest.raises((DataError, RuntimeError), match=r"worker .*(killed by signal|exited unexpectedly)"),
    ):
        list(loader)
    gc.collect()


def test_signals_to_the_whole_group_are_the_first_processs_affair():
    with BatchLoader(Rows(), 5, workers=2) as loader:
        batches = iter(loader)
        next(batches)  # one worker is under way; the other one may still be starting
        for child in multiprocessing.active_children():
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
                os.kill(child.pid, number)
        assert len(list(batches)) == 4
        assert len(list(loader)) == 5
        assert len(multiprocessing.active_children()) == 2


def test_workers_end_with_the_loader():
    loader = BatchLoader(Rows(), 5, workers=2)
    list(loader)
    assert len(multiprocessing.active_children()) == 2
    del loader
    gc.collect()
    assert not multiprocessing.active_children()


class Stuck(Rows):
    def __getitem__(self, index):
        if index == 13:
            time.sleep(600)
        return super().__getitem__(index)


def test_a_worker_that_is_stuck_is_ended(monkeypatch):
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)
    loader = BatchLoader(Stuck(), 5, shuffle=False, workers=1)
    batches = iter(loader)
    next(batches)
    time.sleep(0.3)
    begin = time.monotonic()
    loader.close()
    assert time.monotonic() - begin < 5
    assert not multiprocessing.active_children()


def test_data_in_memory_starts_nobody():
    loader = BatchLoader(ArrayDataset(torch.arange(9)), 4, workers=2)
    list(loader)
    assert not multiprocessing.active_children()
    loader.close()


@pytest.mark.parametrize(("value", "error"), [(-1, DataError), (1.5, InputTypeError), (True, InputTypeError)])
def test_a_number_of_workers(value, error):
    with pytest.raises(error, match="workers must be"):
        BatchLoader(Rows(), 4, workers=value)


class Labelled(Dataset):
    def __len__(self):
        return 23

    def __getitem__(self, index):
        return torch.rand(4), index % 3


class FailingLabelled(Labelled):
    def __getitem__(self, index):
        return super().__getitem__(index if index != 13 else None)


@pytest.mark.parametrize("wrong", [False, True])
def test_train_and_evaluate_end_their_workers(wrong):
    def train(workers, micro_batch):
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 3).double()
        data = FailingLabelled() if wrong else Labelled()
        wb.train(
            model.double(), data, loss=torch.nn.CrossEntropyLoss(), optimizer=torch.optim.SGD, batch_size=8, epochs=2,
            micro_batch=micro_batch, eval_data=Labelled(), workers=workers, display=False,
        )  # fmt: skip
        return model

    torch.set_default_dtype(torch.float64)
    try:
        if wrong:
            with pytest.raises(DataError, match="sample 13 of FailingLabelled") as caught:
                train(2, 3)
            assert caught.tb  # which holds all frames, and they the loader
            assert not multiprocessing.active_children()
            return
        one, other = train(0, "auto"), train(2, 3)
        assert not multiprocessing.active_children()
        torch.testing.assert_close(one.weight, other.weight, rtol=1e-12, atol=1e-14)
        with pytest.raises(DataError, match="sample 13"):
            wb.evaluate(one, FailingLabelled(), workers=1)
    finally:
        torch.set_default_dtype(torch.float32)


class Stopping(Observer):
    def step(self, progress):
        raise KeyError("of an observer")


def test_train_ends_its_workers_whatever_ends_it():
    with pytest.raises(KeyError) as caught:
        wb.train(
            torch.nn.Linear(4, 3), Labelled(), loss=torch.nn.CrossEntropyLoss(), optimizer=torch.optim.SGD,
            batch_size=8, workers=1, observers=[Stopping()], eval_data=Labelled(), display=False,
        )  # fmt: skip
    assert caught.tb  # which holds all frames, and they the loader
    assert not multiprocessing.active_children()


SCRIPT = """
import multiprocessing, os, sys, time, torch
import wholebatch as wb

class Rows(torch.utils.data.Dataset):
    def __len__(self): return 1000
    def __getitem__(self, index):
        time.sleep(0.001)
        return torch.zeros(2), index

loader = wb.data.BatchLoader(Rows(), 5, workers=2)
batches = iter(loader)
next(batches)
print(*[child.pid for child in multiprocessing.active_children()], flush=True)
how = sys.argv[1]
if how == "error": raise ValueError("of the user")
for batch in batches: time.sleep(0.02)
"""


@pytest.mark.parametrize("how", ["error", "SIGINT"])
def test_workers_end_with_the_interpreter(tmp_path, how):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    (tmp_path / "script.py").write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, "script.py", how], cwd=tmp_path, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        workers = [int(word) for word in process.stdout.readline().split()]
        assert len(workers) == 2
        if how == "SIGINT":
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        assert process.wait(30) != 0
        assert not [worker for worker in workers if alive(worker)]
    finally:
        process.kill()
        process.stdout.close()


def read_slowly(pipe):
    """In a process of its own: read with two workers, tell their numbers, go on."""
    loader = BatchLoader(Slow(), 5, workers=2)
    batches = iter(loader)
    next(batches)
    pipe.send([child.pid for child in multiprocessing.active_children()])
    list(batches)
    os._exit(3)


class Slow(Rows):
    def __getitem__(self, index):
        time.sleep(0.1)
        return super().__getitem__(index)


@pytest.mark.parametrize("how", ["os._exit", "SIGTERM", "SIGKILL"])
def test_workers_end_with_a_process_that_could_not_end_them(monkeypatch, how):
    monkeypatch.setattr("torch.utils.data._utils.worker.MP_STATUS_CHECK_INTERVAL", 0.2)  # 5 seconds otherwise
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=read_slowly, args=(theirs,))
    process.start()
    workers = ours.recv()
    assert len(workers) == 2
    assert all(map(alive, workers))
    if how.startswith("SIG"):
        os.kill(process.pid, getattr(signal, how))
    process.join(30)
    deadline = time.monotonic() + 10
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [worker for worker in workers if alive(worker)]
    process.close()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_one_ahead():
    made = []

    def items():
        for number in range(5):
            made.append(number)
            yield {"x": torch.full((2,), number)}

    ahead = Ahead(items(), torch.device("cpu"))
    assert next(ahead)["x"].tolist() == [0, 0]
    time.sleep(0.1)
    assert len(made) in (2, 3)  # one waits, one is being put
    assert [item["x"][0].item() for item in ahead] == [1, 2, 3, 4]
    with pytest.raises(StopIteration):
        next(ahead)
    ahead.close()


def test_one_ahead_is_stopped_and_tells_of_errors():
    def items():
        yield torch.zeros(1)
        raise DataError("of the source")

    failing = Ahead(items(), torch.device("cpu"))
    next(failing)
    with pytest.raises(DataError, match="of the source"):
        next(failing)
    endless = Ahead(iter(lambda: torch.zeros(1), None), torch.device("cpu"))
    next(endless)
    endless.close()
    endless.close()
    assert not endless._thread.is_alive()
    with pytest.raises(StopIteration):
        next(endless)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_arrive_on_the_gpu():
    with BatchLoader(Rows(), 5, shuffle=False, workers=2) as loader:
        expected = epochs(BatchLoader(Rows(), 5, shuffle=False), 1)
        for _ in range(2):
            got = [[piece[0] for piece in window] for window in loader.windows(2, "cuda")]
            assert all(piece.is_cuda for window in got for piece in window)
        loader.load_state_dict({"epoch": 0, "consumed": 0})
        assert [torch.cat([p[0] for p in w]).tolist() for w in loader.windows(2, "cuda")] == expected[0]
