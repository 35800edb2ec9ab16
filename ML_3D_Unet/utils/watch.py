"""What one sees of a training while it runs: the bar in the terminal, and the pages of TensorBoard."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import tensorflow as tf
from tqdm.auto import tqdm


class WaitClock:
    """Tells how much of the time since it was made was spent waiting for the next batch.

    Attributes
    ----------
    waited : float
        Seconds spent waiting.
    """

    def __init__(self) -> None:
        self.waited = 0.0
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since the clock was made."""
        return time.monotonic() - self._began

    @property
    def share(self) -> float:
        """Share of the time that was spent waiting, from 0 to 1."""
        return self.waited / max(self.seconds, 1e-9)

    def timed(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Yield the batches, and add up the time that each took to come."""
        iterator = iter(batches)
        while True:
            asked = time.monotonic()
            batch = next(iterator, None)
            self.waited += time.monotonic() - asked
            if batch is None:
                return
            yield batch


class ProgressBar:
    """A tqdm bar that counts examples and shows loss, accuracy, speed and the share of waiting.

    Parameters
    ----------
    label : str
        What stands before the bar.
    total, initial : int
        Examples of the pass, None where it is not known, and those that were done before a resume.
    clock : WaitClock
        Of the same pass.
    visible : bool
        Whether anything is shown.
    """

    def __init__(
        self, label: str, *, total: int | None, initial: int, clock: WaitClock, visible: bool
    ) -> None:
        self._clock = clock
        self._bar = tqdm(
            total=total, initial=initial, desc=label, unit=" examples", leave=False, disable=not visible
        )

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def advance(self, examples: int) -> None:
        """Count examples; those that only fill up the last batch do not go beyond the total."""
        left = examples if self._bar.total is None else self._bar.total - self._bar.n
        self._bar.update(min(examples, left))

    def show(self, means: dict[str, float]) -> None:
        """Show means over the examples so far beside the bar."""
        shown = {name: f"{value:.4f}" for name, value in means.items()}
        self._bar.set_postfix({**shown, "waiting": f"{100 * self._clock.share:.0f}%"})


class TensorBoardLog:
    """Writes scalars and pictures of a run for TensorBoard.

    Parameters
    ----------
    folder : Path
        Where the event files go; made with the first of them.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._writer = folder, None

    def _as_default(self) -> Any:
        if self._writer is None:
            try:
                self._writer = tf.summary.create_file_writer(str(self._folder))
            except ImportError as error:
                raise ValueError(
                    f"{self._folder}: expected the package tensorboard for tensorboard=True, found none: "
                    f"pip install tensorboard ({error})."
                ) from error
        return self._writer.as_default()

    def scalars(self, row: dict[str, int | float | None]) -> None:
        """Write the numbers of an epoch, each under its name in the history."""
        with self._as_default():
            for name, value in row.items():
                if value is not None and name != "epoch":
                    tf.summary.scalar(name, value, step=int(row["epoch"]))
        self._writer.flush()

    def panel(self, images: Any, epoch: int) -> None:
        """Write pictures of shape (n, height, width, 3), values from 0 to 1."""
        with self._as_default():
            tf.summary.image("panel", images, step=epoch, max_outputs=len(images))
        self._writer.flush()


def first_example_panel(model: Callable, x: Any, y: Any, panel: Callable[[Any, Any, Any], Any]) -> Any:
    """Draw what a model makes of the first of some examples: `panel(x, y, prediction)` for that one."""
    first_x, first_y = (tf.nest.map_structure(lambda tensor: tensor[:1], part) for part in (x, y))
    return panel(first_x, first_y, model(first_x, training=False))
