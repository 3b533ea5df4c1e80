"""Training of all three systems: steps over windows, in one process or in several with one joint batch.

Whatever is random in an epoch is drawn anew from the seed and the epoch's number. So the weights, the optimizer's
moments and the number of finished epochs are all that a training needs to go on as if it had never stopped.

Several processes take a part of every batch each. The losses are means over the positives, negatives and sampled cells
of a batch, so means of the parts' losses would be something else. Therefore every process gathers the scores and
targets of all, takes the loss of the joint batch, and passes back what comes to its own scores; the sum over processes
is the gradient of the joint batch, whatever the losses are.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..cli.parser import progress
from ..config import BCNetConfig, Config, ModelConfig
from ..data.annotations import VideoAnnotation
from ..data.features import FeatureArchive
from ..data.timing import TimeResolver
from ..errors import InputError
from ..evaluation import METRICS, AverageRecall, average_recall
from ..geometry.proposal_map import proposal_map
from ..inference.model import Model, require_units
from ..inference.predict import Failure, predict
from ..networks import trainable as models
from ..networks.outputs import Output
from ..ops.precision import gpu_products
from ..protocols import Protocol
from .dataset import TrainingWindows
from .losses import bcnet_loss, map_loss
from .targets import MapTargets, Targets

Losses = dict[str, Tensor]
VALIDATION = METRICS["activitynet13"]  # tIoU 0.5:0.05:0.95, AN 1 to 100, on every data set
SHOWN_AN = (10, 50, 100)
_ORDER, _DRAWS, _DROPOUT, _SHIFTS = range(4)  # what is drawn


def build_network(config: ModelConfig) -> nn.Module:
    """A network with first weights from torch's generator. InputError for sizes that do not go together."""
    try:
        network = models.build(config)
    except (ValueError, RuntimeError) as error:
        raise InputError(f"model: expected sizes that go together, found {error}") from error
    if isinstance(config, BCNetConfig):
        initialise(network)
    return network


def initialise(network: nn.Module) -> None:
    """Start BCNet where the features are seen.

    By PyTorch's defaults they come out of the backbone an order of magnitude smaller than the position embedding, and
    the first LayerNorm leaves little of them.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv1d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.zeros_(module.weight)


def loss_function(model: ModelConfig, protocol: Protocol, device: torch.device) -> Callable[..., Losses]:
    """(output, targets, draws) -> the parts of the objective of a system."""
    if isinstance(model, BCNetConfig):
        return lambda output, targets, draws: bcnet_loss(output, targets, draws=draws, protocol=protocol)
    valid = torch.from_numpy(proposal_map(model).valid).to(device)
    return lambda output, targets, draws: map_loss(output, targets, valid, draws=draws, protocol=protocol)


class Processes:
    """Who takes part in a training: this process alone, or all those that torchrun started."""

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank, self.count = rank, count

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes files and prints."""
        return self.rank == 0

    @classmethod
    @contextlib.contextmanager
    def join(cls, device: torch.device) -> Iterator[Processes]:
        """Those of torchrun's environment variables, with gloo on CPUs and NCCL on GPUs."""
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if count == 1:
            yield cls()
            return
        # The others wait while the first one validates.
        patience = datetime.timedelta(hours=6)
        on_gpu = device.type == "cuda"
        dist.init_process_group("nccl" if on_gpu else "gloo", timeout=patience, device_id=device if on_gpu else None)
        try:
            yield cls(dist.get_rank(), count)
            # One that ends while others still work may abort, and torchrun then stops them all.
            dist.barrier()
        finally:
            dist.destroy_process_group()

    def part(self, batch: Sequence[int]) -> list[int]:
        """This process's windows of a batch."""
        return np.array_split(np.asarray(batch), self.count)[self.rank].tolist()

    def gather(self, mine: Tensor, rows: Sequence[int]) -> Tensor:
        """The rows of all processes, of which this one's keep their gradient; `rows` has the number of each."""
        if self.count == 1:
            return mine
        # Collectives need equal shapes, and a batch that the processes do not divide has parts of two sizes.
        padded = mine.new_zeros(max(rows), *mine.shape[1:])
        padded[: len(mine)] = mine.detach()
        parts = [torch.empty_like(padded) for _ in rows]
        dist.all_gather(parts, padded)
        parts = [part[:count] for part, count in zip(parts, rows, strict=True)]
        parts[self.rank] = mine
        return torch.cat(parts)

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes."""
        if self.count == 1:
            return
        together = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(together)
        parts = together.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


class Trainer:
    """A network with everything that changes while it is trained."""

    def __init__(
        self,
        config: Config,
        protocol: Protocol,
        device: torch.device,
        processes: Processes | None = None,
    ) -> None:
        self.config, self.device, self.processes = config, device, processes or Processes()
        settings = config.train
        if device.type == "cuda" or settings.precision == "tf32":
            require_units(device, settings.precision)
        torch.manual_seed(settings.seed)  # all processes begin with the same weights
        self.network = build_network(config.model).to(device).train()
        self.parameters = dict(self.network.named_parameters())
        self.mean = {name: p.detach().clone() for name, p in self.parameters.items()} if settings.ema else {}
        self.optimizer = torch.optim.Adam(
            self.network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        self.loss = loss_function(config.model, protocol, device)

    def learning_rate(self, epoch: int) -> float:
        settings = self.config.train
        return settings.learning_rate * settings.decay_factor ** (epoch // settings.decay_every)

    def backward(self, features: Tensor, targets: Targets | MapTargets, draws: Tensor, rows: Sequence[int]) -> Losses:
        """Gradients of a joint batch, in every process, and its losses.

        features [B, C, T] and targets are this process's part of it; rows: the size B of every process's part; draws:
        of the joint batch, see `losses.regression_loss`.
        """
        self.optimizer.zero_grad()  # now, so that the forward does not find the last step's gradients in memory
        precision = self.config.train.precision
        with gpu_products(tf32=precision == "tf32"):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16"):
                output: Output = self.network(features)
            if precision == "bf16":
                output = output.map(Tensor.float)
            output = output.map(lambda scores: self.processes.gather(scores, rows))
            targets = type(targets)(*(self.processes.gather(target, rows) for target in targets))
            losses = self.loss(output, targets, draws)
            losses["total"].backward()
        self.processes.add_up([p.grad for p in self.network.parameters() if p.grad is not None])
        return losses

    def step(self) -> None:
        """Change the weights along the gradients."""
        settings = self.config.train
        if settings.gradient_clip:
            nn.utils.clip_grad_norm_(self.network.parameters(), settings.gradient_clip)
        self.optimizer.step()
        with torch.no_grad():
            for name, mean in self.mean.items():
                mean.lerp_(self.parameters[name], 1 - settings.ema)

    def batches(self, windows: int, epoch: int) -> list[list[int]]:
        """The joint batches of an epoch, numbers of windows in random order."""
        order = np.random.default_rng([self.config.train.seed, epoch, _ORDER]).permutation(windows)
        size = self.config.train.batch_size
        batches = [order[first : first + size].tolist() for first in range(0, windows, size)]
        # A process without a window has no part in a step.
        return [batch for batch in batches if len(batch) >= self.processes.count]

    def epoch(self, windows: TrainingWindows, epoch: int, workers: int) -> dict[str, float]:
        """Train on all windows once; returns the mean of every loss over the steps."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(epoch)
        batches = self.batches(len(windows), epoch)
        if self.config.train.shift_windows:
            windows.shift(np.random.default_rng([self.config.train.seed, epoch, _SHIFTS]))
        # A forked worker must not inherit open HDF5 files.
        windows.archive.close()
        loader = DataLoader(
            windows,
            batch_sampler=[self.processes.part(batch) for batch in batches],
            num_workers=workers,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # else starting the workers draws from the global random state
        )
        seed = self.config.train.seed
        _seed_torch(seed, epoch, _DROPOUT, self.processes.rank)
        drawn = torch.Generator().manual_seed(_mixed(seed, epoch, _DRAWS))
        self.network.train()
        names: list[str] = []
        total = torch.zeros(())
        done = 0

        def note() -> str:
            return ", ".join(
                f"{name} {mean:.3f}"
                for name, mean in zip(names, (total / max(done, 1)).tolist(), strict=True)
                if name in ("boundary", "regression", "classification", "background", "total")
            )

        steps = zip(batches, loader, strict=True)
        for batch, (features, targets) in progress(
            steps, len(batches), f"steps of epoch {epoch + 1}", note, hidden=not self.processes.first
        ):
            rows = [len(part) for part in np.array_split(batch, self.processes.count)]
            features = features.to(self.device, non_blocking=True)
            targets = type(targets)(*(target.to(self.device, non_blocking=True) for target in targets))
            cells = targets.anchor_action if isinstance(targets, Targets) else targets.action
            draws = torch.rand(2, len(batch), *cells.shape[1:], generator=drawn).to(self.device)
            losses = self.backward(features, targets, draws, rows)
            self.step()
            names = list(losses)
            total = total.to(self.device, torch.float64) + torch.stack([loss.detach() for loss in losses.values()])
            done += 1
        means = dict(zip(names, (total / done).tolist(), strict=True))
        if not all(np.isfinite(list(means.values()))):
            raise InputError(
                f"train.learning_rate: expected one with which the loss stays finite, found {means['total']} in epoch "
                f"{epoch + 1} with {self.learning_rate(epoch):g}"
            )
        return means

    def weights(self) -> dict[str, Tensor]:
        """The result so far: the mean of the weights where there is one."""
        return self.network.state_dict() | self.mean

    def state(self) -> dict[str, Tensor]:
        """All tensors that another trainer needs to go on."""
        moments = self.optimizer.state_dict()["state"]
        return {
            **{f"network.{name}": tensor for name, tensor in self.network.state_dict().items()},
            **{f"mean.{name}": tensor for name, tensor in self.mean.items()},
            **{f"adam.{p}.{name}": tensor for p, of_one in moments.items() for name, tensor in of_one.items()},
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` gave."""
        parts: dict[str, dict[str, Tensor]] = {"network": {}, "mean": {}, "adam": {}}
        for name, tensor in state.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        self.network.load_state_dict(parts["network"])
        for name, mean in self.mean.items():
            mean.copy_(parts["mean"][name])
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in parts["adam"].items():
            number, _, rest = name.partition(".")
            moments.setdefault(int(number), {})[rest] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})


def _mixed(*entropy: int) -> int:
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])


def _seed_torch(*entropy: int) -> None:
    torch.manual_seed(_mixed(*entropy))


def validate(
    model: Model,
    archive: FeatureArchive,
    truth: Mapping[str, VideoAnnotation],
    times: TimeResolver,
    protocol: Protocol,
    workers: int = 0,
) -> tuple[AverageRecall, list[Failure]]:
    """Average recall of the model's proposals, by the ActivityNet protocol, and the videos on which it failed."""
    proposals: dict[str, Any] = {}
    failures = []
    found = predict(model, archive, list(truth), times, protocol, workers=workers)
    # In a log file, a line for every epoch is enough.
    for result in progress(found, len(truth), "videos validated", hidden=not sys.stderr.isatty()):
        if isinstance(result, Failure):
            failures.append(result)
        else:
            proposals[result.video] = np.column_stack([result.segments, result.scores])
    recall = average_recall(
        truth, proposals, tiou_thresholds=VALIDATION.recall_thresholds, max_proposals=VALIDATION.max_proposals
    )
    return recall, failures
