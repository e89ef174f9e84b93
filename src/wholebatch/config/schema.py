"""What a configuration holds: one dataclass per group, a docstring per field.

The first line of a field's docstring is what ``wholebatch config show`` prints beside it. Groups with a
field ``arguments`` are open: a key that is no field of theirs is passed on to what they name, so that
``optimizer.eps=1e-6`` reaches the optimizer.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import textwrap
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from wholebatch.core.batch_sizes import BatchSizes

NAMED_BY = {"data": "name", "model": "name", "optimizer": "name", "schedule": "shape", "loss": "name"}
"""The groups, and the field that says which one: ``model=lenet`` is short for ``model.name=lenet``."""


@dataclass
class Augment:
    """Small random changes of the training images, drawn for every (seed, epoch, sample)."""

    max_shift: float = 0.0
    """largest shift along each axis, in pixels"""
    max_degrees: float = 0.0
    """largest rotation to either side, in degrees"""
    max_scale: float = 0.0
    """largest relative change of size, 0 to below 1 (0.1: 0.9 to 1.1 times)"""
    random_resized_crop: float = 0.0
    """smallest share of the area that a random window has, which is then brought to the image's size; 0: none"""
    crop_padding: int = 0
    """pixels added on all sides before a window of the image's size is cut at a random place; 0: none"""
    crop_mode: str = "constant"
    """what is added: constant (zeros) or reflect (the image mirrored at its edge)"""
    flip: bool = False
    """mirror every second image or so from left to right"""
    callable: str | None = None
    """anybody's transform, package.module:name, such as torchvision.transforms.v2:RandAugment; null: none"""
    callable_per: str = "sample"
    """call it per sample (generators seeded by sample) or per batch (the micro-batch then matters if it draws)"""
    callable_arguments: dict[str, Any] = field(default_factory=dict)
    """arguments of the callable"""
    color_jitter: list[float] | None = None
    """amounts of brightness, contrast, saturation and hue, such as [0.4, 0.4, 0.4, 0.1]; null: none"""
    cutout: int = 0
    """side of a square that is covered at a random place, in pixels; 0: none"""
    mixup: float = 0.0
    """alpha of MixUp, which blends every image and target with another of the whole batch; 0: none"""
    cutmix: float = 0.0
    """alpha of CutMix, which pastes a box of another image; with mixup, every sample has one of them; 0: none"""


@dataclass
class Data:
    """The data set; further keys are options of the data set named, such as size, on_error, test_share."""

    name: str = "digits"
    """data set: digits, cifar10, cifar100, fashion_mnist, mnist, imagenet, folder, list, hf, text, or module:name"""
    root: str | None = None
    """where its files are; null: where the data set looks by itself (digits are embedded and need none)"""
    normalize: Any = "auto"
    """auto (the data set's own, or computed once over the training images), null (none), or {mean: …, std: …}"""
    augment: Augment = field(default_factory=Augment)
    """small random changes of the training images"""
    arguments: dict[str, Any] = field(default_factory=dict)
    """options of the data set that have no field here"""


@dataclass
class Model:
    """The model; further keys are arguments of the model named."""

    name: str = "small_cnn"
    """model, see wholebatch.models"""
    arguments: dict[str, Any] = field(default_factory=dict)
    """arguments of the model that have no field here"""


@dataclass
class Optimizer:
    """The optimizer; null leaves its own default, further keys are arguments of the optimizer named."""

    name: str = "sgd"
    """optimizer: a class of torch.optim, such as sgd, adam, adamw"""
    momentum: float | None = None
    """share of the last update that is kept"""
    nesterov: bool | None = None
    """Nesterov's momentum"""
    weight_decay: float | None = None
    """weight decay, as the optimizer defines it"""
    betas: list[float] | None = None
    """decay rates of the running averages of Adam and its kin"""
    arguments: dict[str, Any] = field(default_factory=dict)
    """arguments of the optimizer that have no field here"""


@dataclass
class Schedule:
    """The learning rate as a function of progress; null leaves the shape's own default."""

    shape: str = "constant"
    """constant, cosine, polynomial, linear, factor, multi_factor, square_root or trapezoid"""
    warmup_steps: int = 0
    """length of the linear warm-up, in schedule_unit"""
    warmup_begin_lr: float = 0.0
    """learning rate at the beginning of the warm-up"""
    max_update: int | None = None
    """where the shape ends, in schedule_unit; null: at the end of training"""
    final_lr: float | None = None
    """learning rate at the end"""
    arguments: dict[str, Any] = field(default_factory=dict)
    """arguments of the shape that have no field here, such as factor, power, step"""


@dataclass
class Loss:
    """The loss."""

    name: str = "cross_entropy"
    """loss: cross_entropy, or supervised_contrastive (of the whole batch, for the model contrastive)"""
    label_smoothing: float = 0.0
    """share of a target that is spread over all classes, 0 to 1; of cross_entropy"""
    temperature: float = 0.1
    """what similarities are divided by; of supervised_contrastive"""


@dataclass
class Parallel:
    """How processes share every batch; the result does not depend on it, but where there are ``workers``."""

    data: int | str = "auto"
    """processes along the samples; auto: what the others leave of those that were started"""
    shard: int = 1
    """processes that parameters, gradients and optimizer state are split over, besides sharing the samples"""
    tensor: int = 1
    """processes that single layers are split over, by plan"""
    reshard: str | None = None
    """with shard: parameters are whole for a step (step), or layer by layer (layer: less memory); null: step"""
    plan: Any = None
    """with tensor: {layer: way}, such as {blocks.*.mlp.fc1: colwise}; null: that of the model, where it has one"""
    engine: str = "auto"
    """what sums the gradients: auto, flat (after backward) or ddp (DistributedDataParallel, during it)"""
    pipeline: int = 1
    """processes that the model's layers are cut into, one stage or more each"""
    schedule: str | None = None
    """with pipeline: the order of its passes, 1f1b, gpipe, interleaved1f1b, zbvzerobubble, …; null: 1f1b"""
    cuts: list[str] | None = None
    """with pipeline: the modules that each begin a stage; null: where the measured times are even"""
    workers: int | None = None
    """logical workers; those below change the result, which is then a function of their number; null: none"""
    compress: Any = None
    """how gradients travel: bf16, fp16, {powersgd: rank}, or null (as they are)"""
    local_steps: int | None = None
    """steps that every worker makes by itself between two meetings; null: none"""
    outer: Any = None
    """what a meeting does: average (null is that), diloco, or {diloco: {lr: 0.7, momentum: 0.9}}"""
    start: int | None = None
    """steps made together before the first local ones; null: none"""
    overlap: bool | None = None
    """let the mean travel during the next round, and apply it one round late"""
    stale: int | None = None
    """steps that every gradient is applied late; null: none"""


@dataclass
class Config:
    """All that a training run is made of."""

    recipe: str = "digits"
    """recipe this configuration starts from"""
    preset: str | None = None
    """settings laid over the recipe's own, of those that the recipe has by name; null: none"""
    batch_size: Any = 128
    """samples of one optimizer step; or a schedule of them, such as {0: 128, 10: 256} (256 from epoch 10 on)"""
    batch_size_unit: str = "epoch"
    """what a schedule of batch sizes counts: epoch, or samples drawn since training began"""
    batch_lr_rule: str | None = None
    """how the learning rate follows a schedule of batch sizes: linear, sqrt, or null (not at all)"""
    micro_batch: int | str = "auto"
    """samples of one forward and backward pass, or auto; the result does not depend on it"""
    accumulation_steps: int | None = None
    """in place of micro_batch: passes per step (batch_size / N, rounded up)"""
    micro_batch_tokens: int | None = None
    """in place of micro_batch: tokens of one pass, for text of uneven length"""
    epochs: int = 10
    """passes over the training data"""
    seed: int = 0
    """seed of weights, order, augmentation and dropout"""
    lr: float = 0.1
    """learning rate; a schedule starts from it"""
    schedule_unit: str = "step"
    """what a schedule counts: step or epoch"""
    clip_norm: float | None = None
    """largest norm of the gradient; null: no clipping"""
    precision: str = "fp32"
    """arithmetic of the model: fp32, tf32, bf16, fp16, bf16-true, or auto: bf16 where the processor has it"""
    channels_last: bool | str = False
    """keep images as height x width x channels: true, false, or auto: for convolutions, without group norm"""
    recompute: str | None = None
    """layers that run again in backward, such as layers.*, which saves memory; null: none"""
    bitwise: bool = False
    """same bits on any number of processes (needs a micro_batch)"""
    threads: int | None = None
    """of torch in bitwise mode, whose bits depend on them; null: 1"""
    workers: int = 0
    """processes that read and decode images ahead of time; data in memory need none"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps …"""
    run_dir: str | None = None
    """folder of the run; null: runs/<recipe>-<date>-<time> in the current folder"""
    checkpoint_every: str | None = None
    """how often to save: 500 steps, 2 epochs, 10 min; null: after an epoch, at most once a minute"""
    time_limit: str | None = None
    """time until which to have saved and stopped, such as 2 h or 90 (seconds); null: none"""
    log_every: int | None = None
    """steps between two records of training; null: a record per epoch"""
    digest_every: int | None = None
    """steps between two records with a digest of the weights' bits; null: none"""
    data: Data = field(default_factory=Data)
    """data set"""
    model: Model = field(default_factory=Model)
    """model"""
    optimizer: Optimizer = field(default_factory=Optimizer)
    """optimizer"""
    schedule: Schedule = field(default_factory=Schedule)
    """learning rate over time"""
    loss: Loss = field(default_factory=Loss)
    """loss"""
    parallel: Parallel = field(default_factory=Parallel)
    """how processes share every batch; the result does not depend on it"""

    def resolved_micro_batch(self) -> int | str:
        """Return the micro-batch that ``micro_batch`` and ``accumulation_steps`` say: a number of samples or "auto".

        >>> Config(batch_size=100, accumulation_steps=3).resolved_micro_batch()
        34
        """
        if self.accumulation_steps is None:
            return self.micro_batch
        return -(-self.sizes().first // self.accumulation_steps)

    def sizes(self) -> BatchSizes:
        """Return the batch sizes, a number being a schedule, too.

        >>> Config(batch_size={0: 128, 10: 256}).sizes().largest
        256
        """
        return BatchSizes(self.batch_size, self.batch_size_unit)


@functools.cache
def field_docs(group: type) -> dict[str, str]:
    """Return the first line of the docstring under each field of a dataclass.

    >>> field_docs(Config)["batch_size"]
    'samples of one optimizer step; or a schedule of them, such as {0: 128, 10: 256} (256 from epoch 10 on)'
    """
    body = ast.parse(textwrap.dedent(inspect.getsource(group))).body[0]
    assert isinstance(body, ast.ClassDef)
    docs = {}
    for statement, after in zip(body.body, body.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            assert isinstance(after, ast.Expr), f"{group.__name__}.{statement.target.id} has no docstring"
            assert isinstance(after.value, ast.Constant)
            docs[statement.target.id] = str(after.value.value).strip().splitlines()[0]
    return docs


def subgroups(group: type) -> dict[str, type]:
    """Return the fields of a dataclass that are dataclasses themselves, with their types.

    >>> list(subgroups(Config))
    ['data', 'model', 'optimizer', 'schedule', 'loss', 'parallel']
    """
    made: dict[str, Any] = {item.name: item.default_factory for item in dataclasses.fields(group)}
    return {name: kind for name, kind in made.items() if isinstance(kind, type) and dataclasses.is_dataclass(kind)}


def field_names(group: type) -> list[str]:
    """Return the keys of a group that one may write, in order (``arguments`` is filled by keys of their own).

    >>> field_names(Model)
    ['name']
    """
    return [item.name for item in dataclasses.fields(group) if item.name != "arguments"]


def is_open(group: type) -> bool:
    """Return whether the group passes keys on that are no fields of it."""
    return any(item.name == "arguments" for item in dataclasses.fields(group))


def type_of(key: str) -> Any:
    """Return the type of the field at a dotted key, or None where there is no such field.

    >>> type_of("lr"), type_of("data.root"), type_of("zzz")
    (<class 'float'>, str | None, None)
    """
    group: type = Config
    *path, name = key.split(".")
    for part in path:
        if part not in subgroups(group):
            return None
        group = subgroups(group)[part]
    return get_type_hints(group).get(name)


def dotted_keys(group: type = Config, prefix: str = "") -> list[str]:
    """Return every key of the schema, written with dots.

    >>> [key for key in dotted_keys() if key.startswith("data.")]  # doctest: +ELLIPSIS
    ['data.name', 'data.root', 'data.normalize', 'data.augment', 'data.augment.max_shift', ...]
    """
    keys = []
    inner = subgroups(group)
    for name in field_names(group):
        keys.append(prefix + name)
        if name in inner:
            keys += dotted_keys(inner[name], f"{prefix}{name}.")
    return keys
