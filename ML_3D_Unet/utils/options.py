"""What a run may do beside the plain loop, and what its arguments must be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .feeding import is_dataset


@dataclass(frozen=True)
class RunOptions:
    """What a run may do beside the plain loop; by default nothing of it.

    Attributes
    ----------
    accumulate : int
        Parts that a replica's batch is cut into, so that it needs the memory of one: gradients are added up
        over the parts, and the update is that of the whole batch (batch normalisation sees the parts).
    moving_average : float
        Decay of a moving average of the weights, which is then what is validated and saved; 0 is none.
    keep_last : bool
        Whether ``best`` is always the last model: where validation shows other data than are meant.
    stop_after : int
        Validations without a lower loss after which the run ends; 0 for never.
    plateau_after : int
        Validations without a lower loss after which the learning rate is lowered; 0 for never.
    plateau_factor : float
        What the rate is multiplied by then.
    save_minutes : float
        Minutes between checkpoints within an epoch; 0 for none.
    tensorboard : bool
        Whether scalars and pictures are written to ``model_dir/tensorboard``.
    """

    accumulate: int = 1
    moving_average: float = 0.0
    keep_last: bool = False
    stop_after: int = 0
    plateau_after: int = 0
    plateau_factor: float = 0.5
    save_minutes: float = 0.0
    tensorboard: bool = False


PLAIN = RunOptions()


def check_arguments(train_ds: Any, valid_ds: Any, loss_fn: Any, counts: dict[str, Any]) -> None:
    """Raise a `ValueError` that names the argument of `Trainer.train` that is not what was expected."""
    for name, data in (("train_ds", train_ds), ("valid_ds", valid_ds)):
        missing = data is None and name == "train_ds"
        if missing or not (data is None or callable(data) or is_dataset(data)):
            raise ValueError(
                f"Expected {name} to be a dataset or a function epoch -> dataset, received {data!r}."
            )
    if not callable(loss_fn):
        raise ValueError(f"Expected loss_fn(y_true, y_pred), received {loss_fn!r}.")
    for name, count in counts.items():
        if count is not None and (isinstance(count, bool) or int(count) != count or count < 1):
            raise ValueError(f"Expected {name} to be a positive integer, received {count!r}.")
