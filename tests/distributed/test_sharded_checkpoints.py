"""Runs whose model is split, and their checkpoints: written and read in parts, in any layout, whatever goes wrong."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import pickle
import re
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import resuming
import torch
from launching import OURS, ended, launched, wait_for
from resuming import At, error, saved_steps
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor

from wholebatch import models, saved
from wholebatch.checkpoint import Fence, Part, Store, Together, sharded, take_out
from wholebatch.cli import main as cli
from wholebatch.core.errors import FencedError
from wholebatch.core.processes import Group
from wholebatch.step.parts import whole

BAR = 1e-12
EPOCHS, STEPS = 2, 12
PLAN = {"1": "colwise", "4": "rowwise"}
WAYS: dict[str, tuple[int, Any]] = {
    "one": (1, None),
    "shard 2": (2, {"shard": 2}),
    "shard 2, by layers": (2, {"shard": 2, "reshard": "layer"}),
    "shard 3": (3, {"shard": 3}),
    "shard 4": (4, {"shard": 4}),
    "tensor 2": (2, {"tensor": 2, "plan": PLAN}),
    "data 2 x shard 2": (4, {"data": 2, "shard": 2}),
    "data 2": (2, None),
}


def train(folder: str, layout: Any, **options: Any) -> list[Tensor]:
    """Train the small run; return its whole weights."""
    given = {} if layout is None else {"parallel": layout}
    made = resuming.model()
    resuming.train(folder, made, epochs=EPOCHS, **given, **options)
    return [whole(p, p).clone() for p in made.parameters()]


@pytest.fixture(scope="module")
def undisturbed() -> list[Tensor]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    result = train(None, None)  # type: ignore[arg-type]
    torch.set_num_threads(threads)
    return result


# layouts ---------------------------------------------------------------------------------------------


def gathers_nothing() -> Any:
    """Within it no tensor is made whole."""
    return mock.patch.object(DTensor, "full_tensor", side_effect=AssertionError("a tensor was made whole"))


def leg(rank: int, size: int, folder: str, layout: Any, at: int | None) -> Any:
    """Train in one rank, going on where the run stands, until SIGTERM, which the last rank gets after step ``at``."""
    observers = [At(rank, {at: resuming.send(signal.SIGTERM)} if at is not None and rank == size - 1 else {})]
    given = {} if layout is None else {"parallel": layout}
    made = resuming.model()
    code = 0
    with gathers_nothing():
        try:
            resuming.train(folder, made, epochs=EPOCHS, resume=True, observers=observers, **given)
        except SystemExit as stop:
            code = stop.code
    return code, [whole(p, p).clone() for p in made.parameters()]


def test_a_run_in_parts_goes_on_in_every_layout(world: Any, tmp_path: Path, undisturbed: Any) -> None:
    size, layout = WAYS["shard 2"]
    assert [code for code, _ in world(size, leg, str(tmp_path / "run"), layout, 4)] == [143, 143]
    assert saved_steps(tmp_path / "run") == [4]
    for way, (size, layout) in WAYS.items():
        folder = tmp_path / way
        shutil.copytree(tmp_path / "run", folder)
        for code, weights in world(size, leg, str(folder), layout, None):
            assert code == 0
            assert error(weights, undisturbed) < BAR, way
        newest = Store(folder).newest()
        assert newest.step == STEPS
        assert (newest.shards is None) == (layout is None)
        for name, value in saved.newest(folder).items():
            assert type(value) is Tensor, name


def reading(rank: int, size: int, folder: str, layout: Any) -> tuple[int, int, list[str]]:
    """Go on from the run's end; return how many numbers were read, how many there are, and what groups are left."""
    read, numbers = sharded.read, []

    def counted(place: Path, wanted: Any) -> None:
        wanted = list(wanted)
        numbers.extend(tensor.numel() for part in wanted for tensor in part.tensors)
        read(place, wanted)

    with mock.patch.object(sharded, "read", counted):
        train(folder, layout, resume=True)
    groups = [group.group_desc for group in distributed.distributed_c10d._world.pg_map]
    return sum(numbers), 2 * sum(p.numel() for p in resuming.model().parameters()), groups


def test_each_process_reads_its_share(world: Any, tmp_path: Path) -> None:
    world(2, leg, str(tmp_path / "run"), {"shard": 2}, None)
    for layout in ({"shard": 2}, {"shard": 3}):
        size = layout["shard"]
        found = world(size, reading, str(tmp_path / "run"), layout)
        assert sum(read for read, _, _ in found) == found[0][1]
        for read, total, groups in found:
            assert read < 1.2 * total / size
            assert "default_pg" in groups
            assert "wholebatch checkpoints" not in groups  # the group of those that save together is given back


def adam(rank: int, size: int, folder: str, kind: str, layout: Any) -> Any:
    """Train with Adam; return what a checkpoint should hold."""
    torch.manual_seed(3)
    made = {"mlp": resuming.model, "vit": vit, "tied": tied}[kind]()
    optimizer: Any = torch.optim.AdamW(made.parameters(), lr=0.01)
    with gathers_nothing():
        resuming.train(folder, made, epochs=1, optimizer=optimizer, schedule=None, parallel=layout)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    moments = [{name: whole(value, p).clone() for name, value in optimizer.state[p].items()} for p in held]
    return {name: whole(p, p).clone() for name, p in made.named_parameters()}, moments


def tied() -> nn.Module:
    made = nn.Sequential(nn.Flatten(), nn.Linear(36, 36), nn.Linear(36, 36), nn.Linear(36, 3)).double()
    made[2].weight = made[1].weight
    return made


def vit() -> nn.Module:
    options = {"image_size": 6, "patch": 3, "width": 8, "depth": 1, "heads": 2, "dropout": 0.3}
    return models.build("vit", seed=1, num_classes=3, in_channels=1, **options).double()


@pytest.mark.parametrize(
    ("kind", "size", "layout"),
    [
        ("mlp", 3, {"shard": 3}),
        ("tied", 2, {"shard": 2}),
        ("vit", 2, {"tensor": 2}),  # some rows of which are dealt out in another order
        ("vit", 4, {"data": 2, "shard": 2}),
    ],
)
def test_a_checkpoint_holds_every_bit(world: Any, tmp_path: Path, kind: str, size: int, layout: Any) -> None:
    weights, moments = world(size, adam, str(tmp_path / "run"), kind, layout)[0]
    state = saved.state_of(tmp_path / "run")
    assert all(torch.equal(state.model[name], value) for name, value in weights.items())
    for number, entry in enumerate(moments):
        assert state.optimizer["state"][number].keys() == entry.keys()
        assert all(torch.equal(state.optimizer["state"][number][name], value) for name, value in entry.items())
    if kind == "tied":
        assert state.model["1.weight"] is state.model["2.weight"]  # and there once


class PerRow(torch.optim.Optimizer):
    """Keeps for a matrix a mean of each row, of each column, and of all: tensors of other shapes than its own."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for p in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
            state, square = self.state[p], p.grad.square().view(p.shape)
            found = {"all": square.sum()}
            if p.ndim == 2:
                found |= {"rows": square.sum(1, keepdim=True), "columns": square.sum(0)}
            for name, value in found.items():
                state[name] = 0.9 * state[name] + value if name in state else value
            size = state["rows"] * state["columns"] + 1e-4 if p.ndim == 2 else 1.0
            p -= 0.1 * p.grad / (size + state["all"]).sqrt()


def per_row(rank: int, size: int, folder: str | None, layout: Any, epochs: int) -> Any:
    torch.manual_seed(3)
    made, given = vit(), {} if layout is None else {"parallel": layout}
    resuming.train(folder, made, epochs=epochs, optimizer=PerRow, schedule=None, resume=folder is not None, **given)
    return [whole(p, p).clone() for p in made.parameters()]


@pytest.mark.parametrize(
    ("first", "then"),
    [({"shard": 2}, {"tensor": 2}), ({"tensor": 2}, {"shard": 2}), ({"tensor": 2}, None), (None, {"tensor": 2})],
)
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_an_optimizer_with_other_shapes_goes_on(
    world: Any, tmp_path: Path, first: Any, then: Any, scheme: str, straight_per_row: Any
) -> None:
    for layout, epochs in ((first, 1), (then, 2)):
        found = world(1 if layout is None else 2, per_row, f"{scheme}{tmp_path}/run", layout, epochs)
    assert all(error(weights, straight_per_row) < BAR for weights in found)


@pytest.fixture(scope="module")
def straight_per_row() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    result = per_row(0, 1, None, None, 2)
    torch.set_num_threads(threads)
    return result


def large(rank: int, size: int, folder: str, layout: Any) -> int:
    made = nn.Sequential(nn.Flatten(), nn.Linear(36, 1200), nn.Tanh(), nn.Linear(1200, 3)).double()
    with gathers_nothing():
        resuming.train(folder, made, epochs=1, parallel=layout)
    return sum(8 * p.numel() for p in made.parameters())


@pytest.mark.parametrize(("size", "layout"), [(2, {"shard": 2}), (4, {"data": 2, "shard": 2})])
def test_each_process_writes_its_share(world: Any, tmp_path: Path, size: int, layout: Any) -> None:
    total = 2 * world(size, large, str(tmp_path / "run"), layout)[0]  # with the momentum
    files = Store(tmp_path / "run").newest().manifest["files"]
    shares = [entry["size"] for name, entry in files.items() if name.endswith(".distcp")]
    assert len(shares) == size
    assert max(shares) < 1.1 * total / size
    assert total < sum(shares) < 1.1 * total  # what two processes hold alike is there once
    assert files["state.pt"]["size"] < 20_000


def at_a_url(rank: int, size: int, folder: str) -> list[Tensor]:
    return train(f"file://{folder}", {"shard": 2}, resume=True, checkpoint_every="1 epochs")


def test_a_run_at_a_url_stays_whole(world: Any, tmp_path: Path, undisturbed: Any) -> None:
    for _ in range(2):  # the second goes on from the end
        for weights in world(2, at_a_url, str(tmp_path / "run")):
            assert error(weights, undisturbed) < BAR
    assert list((tmp_path / "run").glob("checkpoints/step-*/state.pt"))
    assert not list((tmp_path / "run").glob("checkpoints/step-*/shards"))


def another_model(rank: int, size: int, folder: str) -> str:
    made = nn.Sequential(nn.Flatten(), nn.Linear(36, 10), nn.Tanh(), nn.Dropout(0.4), nn.Linear(10, 3)).double()
    try:
        resuming.train(folder, made, epochs=EPOCHS, resume=True, parallel={"shard": 2}, resume_allow=("layers",))
    except Exception as caught:
        return f"{type(caught).__name__}: {caught}"
    return "nothing"


def test_another_model_is_refused(world: Any, tmp_path: Path) -> None:
    world(2, leg, str(tmp_path / "run"), {"shard": 2}, 4)
    for message in world(2, another_model, str(tmp_path / "run")):
        assert message.startswith(
            "CheckpointError: the run cannot go on as the same one: model['1.weight'] was (12, 36)"
        )


# what goes wrong -------------------------------------------------------------------------------------


def unread(rank: int, size: int, folder: str) -> str:
    """Process 1 does not get its parts."""

    def fails(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with mock.patch.object(sharded._Reader, "read_data", fails) if rank else contextlib.nullcontext():
        try:
            train(folder, {"shard": 2}, resume=True)
        except Exception as caught:
            if rank:
                distributed.destroy_process_group()  # as the end of the process does
                distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
            return f"{type(caught).__name__}: {caught}"
    return "nothing"


def test_one_process_that_cannot_read(world: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    world(2, leg, str(run), {"shard": 2}, 4)
    first, second = world(2, unread, str(run))
    assert first.startswith("LostError: another process is gone")
    shards = run / "checkpoints" / "step-00000004" / "shards"
    assert second == f"CheckpointError: {shards} cannot be read: OSError: [Errno 5] Input/output error"
    assert saved_steps(run) == [4]


class Disk:
    """The disk of one process: something happens at an operation on its own files in ``shards/`` of some steps."""

    def __init__(self, operation: str, does: Any, steps: Any) -> None:
        self._operation, self._does = operation, does
        self._within = re.compile(f"step-0*({'|'.join(map(str, steps))})/shards/__")

    @contextlib.contextmanager
    def __call__(self) -> Any:
        real = getattr(os, self._operation)

        def operation(first: Any, *more: Any, **named: Any) -> Any:
            path = os.readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else os.fspath(first)
            if self._within.search(path):
                self._does()
            return real(first, *more, **named)

        with mock.patch.object(os, self._operation, operation):
            yield


def full(number: int) -> Any:
    def does() -> None:
        raise OSError(number, os.strerror(number))

    return does


def failing_disk(rank: int, size: int, folder: str, operation: str, number: int) -> Any:
    """The disk of rank 1 takes nothing of steps 4 and 6; a checkpoint is asked for after every second step."""
    disk = Disk(operation, full(number), [4, 6] if rank == 1 else [99])
    said = io.StringIO()
    with disk(), contextlib.redirect_stderr(said):
        weights = train(folder, {"shard": 2}, checkpoint_every="2 steps")
    return weights, said.getvalue()


@pytest.mark.parametrize(
    ("operation", "number", "reason"),
    [
        ("write", errno.ENOSPC, "process 1: No space left on device"),
        ("fsync", errno.EIO, "process 1: Input/output error"),
        ("open", errno.ENOENT, "process 1 does not find the folder, which has to be on a file system that all"),
    ],
)
def test_a_disk_that_fails_in_one_process(
    world: Any, tmp_path: Path, undisturbed: Any, operation: str, number: int, reason: str
) -> None:
    results = world(2, failing_disk, str(tmp_path / "run"), operation, number)
    assert all(error(weights, undisturbed) < BAR for weights, _ in results)
    assert saved_steps(tmp_path / "run") == [8, 10, 12]  # the last three; 4 and 6 were not to be
    lines = results[0][1].splitlines()
    assert [line.partition(" could not")[0] for line in lines] == [f"the checkpoint of step {n}" for n in (4, 6)]
    assert all(reason in line and line.endswith("the older ones stay") for line in lines)
    assert results[1][1] == ""
    left = list((tmp_path / "run" / "checkpoints").glob(".*/*"))
    assert left == []


def elsewhere(rank: int, size: int, folder: str) -> str:
    """For rank 1 the staging folder is another machine's."""
    write, said = sharded.write, io.StringIO()

    def there(place: Path, *more: Any) -> Any:
        return write(place.with_name("another machine") if rank else place, *more)

    with mock.patch.object(sharded, "write", there), contextlib.redirect_stderr(said):
        train(folder, {"shard": 2}, checkpoint_every="12 steps")
    return said.getvalue()


def test_a_folder_that_is_not_shared(world: Any, tmp_path: Path) -> None:
    first, second = world(2, elsewhere, str(tmp_path / "run"))
    (line,) = first.splitlines()
    assert "process 1 does not find the folder, which has to be on a file system that all processes share" in line
    assert second == ""
    assert saved_steps(tmp_path / "run") == []


def without_writing(rank: int, size: int, folder: str) -> Any:
    """Save one step twice, then a step after the folder was taken over."""
    said = []
    fence = Fence.take(folder) if rank == 0 else None
    store = Store(folder, fence=fence, say=said.append) if rank == 0 else None
    together = Together(store, Group())
    state, parts = take_out({"a": Part("a", (size, 2), torch.float32, (((rank, 0), torch.ones(1, 2)),))})
    for step in (1, 1, 2):
        if step == 2 and rank == 0:
            Fence.take(folder).close()
        try:
            said.append(together.save(state, parts, step=step))
        except FencedError as error:
            said.append(type(error).__name__)
    return said


def test_where_nothing_is_written_all_know(world: Any, tmp_path: Path) -> None:
    first, second = world(2, without_writing, str(tmp_path / "run"))
    assert second == [True, True, "FencedError"]
    assert first == second


class Noting(torch.optim.SGD):
    """Has a number in its state."""

    note = 1.0

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "note": self.note}


def refused(rank: int, size: int, folder: str, strange: tuple[int, ...]) -> tuple[str, float]:
    """In some processes the number is one that no checkpoint holds."""
    begun = time.monotonic()
    if rank in strange:
        Noting.note = np.float64(1)
    try:
        train(folder, {"shard": 2}, optimizer=lambda parameters: Noting(parameters, lr=0.2))
    except Exception as caught:
        return f"{type(caught).__name__}: {caught}", time.monotonic() - begun
    return "nothing", 0.0


@pytest.mark.parametrize("strange", [(0,), (1,), (0, 1)])
def test_what_cannot_be_saved_is_refused_by_all(world: Any, tmp_path: Path, strange: tuple[int, ...]) -> None:
    reason = "the run['optimizer']['note'] is a numpy.float64"
    for rank, (text, seconds) in enumerate(world(2, refused, str(tmp_path / "run"), strange)):
        kind = "InputTypeError" if rank in strange else f"PeerError: process {strange[0]} failed: InputTypeError"
        assert text.startswith(f"{kind}: {reason}")
        assert seconds < 30  # nobody waits for the other, which is gone


def unplanned(rank: int, size: int, folder: str) -> str:
    """Process 1 cannot say what it will write, in words that no Python can send."""

    def wrapped(error: BaseException) -> Any:
        return error, lambda: None  # what Python 3.13 has in a traceback is no better

    def fails(part: Part) -> Any:
        raise KeyError("a bug")

    torch_utils = "torch.distributed.checkpoint.utils._wrap_exception"
    with (
        mock.patch(torch_utils, wrapped),
        mock.patch.object(sharded, "_to_write", fails if rank else sharded._to_write),
    ):
        try:
            train(folder, {"shard": 2}, checkpoint_every="4 steps")
        except Exception as caught:
            return f"{type(caught).__name__}: {caught}"
    return "nothing"


def test_what_fails_before_writing_is_known_to_all(world: Any, tmp_path: Path) -> None:
    said = "PeerError: process 1 failed: KeyError: 'a bug'"
    assert world(2, unplanned, str(tmp_path / "run")) == [said, said]
    assert saved_steps(tmp_path / "run") == []


def unforeseen(rank: int, size: int, folder: str) -> tuple[str, float]:
    """Process 1 leaves what all do together, without a word."""
    begun = time.monotonic()
    fails = mock.patch.object(sharded.dcp, "save", side_effect=TypeError("a bug"))
    with fails if rank else contextlib.nullcontext():
        try:
            train(folder, {"shard": 2}, checkpoint_every="4 steps")
        except Exception as caught:
            return f"{type(caught).__name__}: {caught}", time.monotonic() - begun
    return "nothing", 0.0


def test_who_leaves_a_save_asks_nobody_again(world: Any, tmp_path: Path) -> None:
    (first, waited), (second, seconds) = world(2, unforeseen, str(tmp_path / "run"))
    assert second == "TypeError: a bug"
    assert first.startswith("LostError: another process is gone")
    assert max(waited, seconds) < 30
    assert saved_steps(tmp_path / "run") == []


def blocked(rank: int, size: int, folder: str) -> Any:
    """Rank 1's disk answers only when the training has made two more steps."""
    event, made, late = threading.Event(), [], []
    disk = Disk("fsync", lambda: late.append(event.wait(30)), [5] if rank == 1 else [99])

    def after() -> None:
        made.append(len(late))  # 0: the write waits for this, or has not begun
        event.set()

    actions: dict[int, Any] = {7: after} if rank == 1 else {}
    with disk():
        train(folder, {"shard": 2}, observers=[At(rank, actions)], checkpoint_every="5 steps")
    return made, late


def test_a_step_does_not_wait_for_the_disk(world: Any, tmp_path: Path) -> None:
    _, (made, late) = world(2, blocked, str(tmp_path / "run"))
    assert (made, late) == ([0], [True])
    assert saved_steps(tmp_path / "run") == [5, 10, 12]


def overtaken(rank: int, size: int, folder: str, gate: str) -> str:
    """A world whose process 1 hangs in a save until ``gate`` is there."""
    disk = Disk("fsync", lambda: hang(Path(folder).with_name("hanging"), Path(gate)), [5] if rank == 1 else [99])
    try:
        with disk():
            train(folder, {"shard": 2}, checkpoint_every="5 steps")
    except Exception as caught:
        return f"{type(caught).__name__}: {caught}"
    return "nothing"


def hang(here: Path, until: Path) -> None:
    here.touch()
    while not until.exists():
        time.sleep(0.01)


def test_an_overtaken_world_publishes_nothing(start: Any, tmp_path: Path) -> None:
    run, gate = tmp_path / "run", tmp_path / "gate"
    processes = start(2, overtaken, str(run), str(gate))
    wait_for((tmp_path / "hanging").exists, 30, "no save began")
    with Fence.take(run):
        gate.touch()
        for process in processes:
            process.join(30)
        assert [process.exitcode for process in processes] == [0, 0]
        said = [pickle.loads((processes[0].folder / f"result-{rank}").read_bytes()) for rank in range(2)]
        assert all(text.startswith("FencedError: this world (generation 1) writes nothing more") for text in said)
        assert saved_steps(run) == []


def to_be_killed(rank: int, size: int, folder: str, victim: int) -> Any:
    """Rank ``victim`` hangs in the save of step 8, to be killed there."""
    here = Path(folder).with_name("hanging")
    with Disk("fsync", lambda: hang(here, here.with_name("never")), [8] if rank == victim else [99])():
        return train(folder, {"shard": 2}, checkpoint_every="4 steps")


@pytest.mark.parametrize("victim", [0, 1])
def test_killed_in_a_save_and_resumed(start: Any, world: Any, tmp_path: Path, undisturbed: Any, victim: int) -> None:
    run = tmp_path / "run"
    processes = start(2, to_be_killed, str(run), victim)
    wait_for((tmp_path / "hanging").exists, 30, "no save began")
    processes[victim].kill()
    for process in processes:
        process.join(30)
    assert processes[1 - victim].exitcode == 1
    reported = (processes[0].folder / f"error-{1 - victim}").read_text()
    assert "LostError: another process is gone" in reported
    assert saved_steps(run) == [4]
    for code, weights in world(3, leg, str(run), {"shard": 3}, None):
        assert code == 0
        assert error(weights, undisturbed) < BAR
    assert not list((run / "checkpoints").glob(".staging*"))


def test_a_damaged_part_is_not_used(world: Any, tmp_path: Path, undisturbed: Any) -> None:
    run = tmp_path / "run"
    for at in (4, 9):
        world(2, leg, str(run), {"shard": 2}, at)
    path = Store(run).newest().shards / "__1_0.distcp"  # type: ignore[operator]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    results = world(2, listening, str(run))
    assert all(error(weights, undisturbed) < BAR for weights, _ in results)
    (line,) = results[0][1].splitlines()
    assert "step-00000009 (shards/__1_0.distcp" in line
    assert "step-00000006 is used instead" in line  # that of the epoch's end
    assert results[1][1] == ""


def listening(rank: int, size: int, folder: str) -> Any:
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        return train(folder, {"shard": 2}, resume=True), said.getvalue()


# the command line ------------------------------------------------------------------------------------


def test_the_command_line_takes_a_run_in_parts(tmp_path: Path, capsys: Any) -> None:
    run = tmp_path / "run"
    words = ["train", "epochs=1", "schedule=constant", f"run_dir={run}", "--processes", "2", "parallel.shard=2"]
    with launched([*OURS, *words], tmp_path) as process:
        code, out, err = ended(process, 100)
        assert (code, out.splitlines()[-1:]) == (0, [f"run: {run}"]), err
    assert Store(run).newest().shards is not None
    for command in ("evaluate", "export"):
        with pytest.raises(SystemExit) as stop:
            cli.main([command, str(run)])
        assert (stop.value.code or 0, capsys.readouterr().err) == (0, "")
    tested = [r for r in saved_history(run) if r["split"] == "test"][-1]["accuracy"]
    assert json.loads((run / "evaluation.json").read_text())["accuracy"] == tested
    assert (run / "export" / "model.safetensors").stat().st_size > 100_000


def saved_history(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
