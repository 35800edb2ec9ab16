"""The segmentation network, its loss and its step in PyTorch, for `bench_step.py` to run beside ours.

Reads   an archive of ours: the weights, one example, and our output for it
Writes  nothing; the last line printed is JSON

    python benchmarks/torch_unet.py ARCHIVE.npz default|channels_last THREADS REPEATS

PyTorch is needed by this benchmark alone (`pip install -r requirements-bench.txt`).
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn

#: Keras' defaults: PyTorch's momentum is the share of the new value, Keras' that of the old one.
EPSILON, MOMENTUM = 1e-3, 0.01


class Block(nn.Sequential):
    """Two convolutions, each with batch normalisation and ReLU."""

    def __init__(self, channels: int, filters: int) -> None:
        layers: list[nn.Module] = []
        for width in (channels, filters):
            layers += [
                nn.Conv3d(width, filters, 3, padding=1),
                nn.BatchNorm3d(filters, eps=EPSILON, momentum=MOMENTUM),
                nn.ReLU(inplace=True),
            ]
        super().__init__(*layers)


class UNet(nn.Module):
    """The network of `create_unet3d` with a stem, max pooling and repeated voxels on the way up."""

    def __init__(self, channels: int, filters: list[int]) -> None:
        super().__init__()
        below = [filters[0], *filters[:-1]]
        self.stem = Block(channels, filters[0])
        self.encoder = nn.ModuleList(Block(a, b) for a, b in zip(below, filters))
        self.decoder = nn.ModuleList(Block(a + b, b) for a, b in zip(filters[:0:-1], filters[-2::-1]))
        self.last = nn.Conv3d(filters[0], 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Give the probability, (batch, 1, P, R, I), of an input (batch, 2, P, R, I)."""
        x, skips = self.stem(x), []
        for level, block in enumerate(self.encoder):
            x = block(x if level == 0 else nn.functional.max_pool3d(x, 2))
            skips.append(x)
        for block, skip in zip(self.decoder, skips[-2::-1]):
            x = block(torch.cat([nn.functional.interpolate(x, scale_factor=2, mode="nearest"), skip], dim=1))
        return torch.sigmoid(self.last(x))

    def load(self, arrays: Iterator[np.ndarray]) -> None:
        """Take the weights of the Keras model, in its order: stem, encoder, decoder, last layer."""
        modules = [m for m in self.modules() if isinstance(m, (nn.Conv3d, nn.BatchNorm3d))]
        for module in modules:
            if isinstance(module, nn.Conv3d):
                kernel = next(arrays).transpose(4, 3, 0, 1, 2)
                targets = ((module.weight, kernel), (module.bias, next(arrays)))
            else:
                names = (module.weight, module.bias, module.running_mean, module.running_var)
                targets = tuple((name, next(arrays)) for name in names)
            for target, array in targets:
                target.data.copy_(torch.from_numpy(np.ascontiguousarray(array)))


def vertebra_loss(truth: torch.Tensor, prediction: torch.Tensor, weight_of_fp: float) -> torch.Tensor:
    """Give the mean over the voxels of w (weight_of_fp FP + FN), as `utils.learning.losses.vertebra_loss`."""
    vertebra, weight = truth[:, :1], truth[:, 1:]
    false_positive, false_negative = (1 - vertebra) * prediction, vertebra * (1 - prediction)
    return (weight * (weight_of_fp * false_positive + false_negative)).mean()


def seconds_of(run: Callable[[], None], repeats: int) -> float:
    """Give the median seconds of some runs, after one that is not counted."""
    run()
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def main(archive: str, layout: str, threads: int, repeats: int) -> int:
    """Time forward pass and step in one layout, and compare the output with ours."""
    torch.set_num_threads(threads)
    stored = np.load(archive)
    memory_format = {"default": torch.contiguous_format, "channels_last": torch.channels_last_3d}[layout]
    network = UNet(2, stored["filters"].tolist())
    network.load(stored[f"weight_{k}"] for k in range(int(stored["weights"])))
    network = network.to(memory_format=memory_format)
    x, y = (
        torch.from_numpy(stored[name]).movedim(-1, 1).contiguous().to(memory_format=memory_format)
        for name in ("x", "y")
    )
    network.eval()
    with torch.no_grad():
        found = network(x)
        forward = seconds_of(lambda: network(x), repeats)
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), 1e-3, eps=1e-7)

    def step() -> None:
        optimizer.zero_grad()
        vertebra_loss(y, network(x), 1.0).backward()
        optimizer.step()

    difference = float((found.movedim(1, -1).numpy() - stored["output"]).__abs__().max())
    print(json.dumps({"forward": forward, "step": seconds_of(step, repeats), "difference": difference}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
