"""Runs that survive: what a run is, kept whole on disk by one writer.

:class:`Store` writes checkpoints that are there whole or not at all and recognises damaged ones; :class:`Fence`
makes sure that only the newest world writes in a run folder; :class:`Background` saves without holding the step;
:class:`Every` says when; :class:`RunState` is what is saved, and refuses to go on as another run; :func:`plain_state`
and :func:`load_plain_state` name a model's weights without its wrappers; :func:`seconds_of` reads a time.
:class:`Together` is a checkpoint that all processes write, each its :class:`Part` of a tensor.
:class:`RemoteStore` and :class:`RemoteFence` are the same at a URL, where less can be promised; :func:`store_at` and
:func:`take` choose.
"""

from wholebatch.checkpoint.background import Background
from wholebatch.checkpoint.every import Every, seconds_of
from wholebatch.checkpoint.fence import Fence
from wholebatch.checkpoint.manifest import Checkpoint
from wholebatch.checkpoint.model_state import load_plain_state, plain_state
from wholebatch.checkpoint.part import Part, read_parts, take_out
from wholebatch.checkpoint.place import store_at, take, taken_by_earlier_world
from wholebatch.checkpoint.remote_fence import RemoteFence
from wholebatch.checkpoint.remote_store import RemoteStore
from wholebatch.checkpoint.run_state import RunState
from wholebatch.checkpoint.snapshot import Snapshot, require_plain
from wholebatch.checkpoint.store import Store
from wholebatch.checkpoint.together import Together

__all__ = [
    "Background",
    "Checkpoint",
    "Every",
    "Fence",
    "Part",
    "RemoteFence",
    "RemoteStore",
    "RunState",
    "Snapshot",
    "Store",
    "Together",
    "load_plain_state",
    "plain_state",
    "read_parts",
    "require_plain",
    "seconds_of",
    "store_at",
    "take",
    "take_out",
    "taken_by_earlier_world",
]
