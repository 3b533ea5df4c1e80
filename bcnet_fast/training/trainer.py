"""Training of all three systems: steps over windows, in one process or in several with one joint batch.

All randomness of an epoch follows from the seed and the epoch's number. So weights, optimizer moments and the number of
finished epochs are the whole state of a training.

With several processes, each takes a part of every batch. Losses are means over the positives, negatives and sampled
cells of a batch, so the mean of the parts' losses would be another function. Therefore each process gathers all scores
and targets, computes the loss of the joint batch, and keeps the gradient of its own scores. The sum over processes is
the gradient of the joint batch, for any loss.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..config import BCNetConfig, Config, ModelConfig
from ..data.workers import end_with_parent, read_in_order
from ..errors import InputError
from ..geometry.proposal_map import proposal_map
from ..inference.model import require_units
from ..networks import trainable as models
from ..networks.outputs import Output
from ..ops.precision import gpu_products
from ..progress import progress
from ..protocols import LossRules
from ..storage.checkpoint import is_finite, mismatches, unfitting
from .dataset import TrainingWindows
from .distributed import Processes
from .losses import bcnet_loss, map_loss
from .seeding import mixed, seed_torch
from .targets import BatchTargets, Targets

Losses = dict[str, Tensor]
_ORDER, _DRAWS, _DROPOUT, _SHIFTS = range(4)  # what is drawn


def build_network(config: ModelConfig) -> nn.Module:
    """A network with initial weights from PyTorch's generator. Raises InputError for sizes that do not fit together."""
    try:
        network = models.build(config)
    except (ValueError, RuntimeError) as error:
        raise InputError(f"the settings of model do not fit together: {error}") from error
    if isinstance(config, BCNetConfig):
        initialise(network)
    return network


def initialise(network: nn.Module) -> None:
    """Initialise BCNet so that its features outweigh the position embedding.

    With PyTorch's defaults the backbone's output is an order of magnitude smaller than the embedding, and the first
    LayerNorm leaves little of it.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv1d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.zeros_(module.weight)


def loss_function(model: ModelConfig, rules: LossRules, device: torch.device) -> Callable[..., Losses]:
    """The objective of a system: (output, targets, draws) -> its terms and total."""
    if isinstance(model, BCNetConfig):
        return lambda output, targets, draws: bcnet_loss(output, targets, draws=draws, rules=rules)
    valid = torch.from_numpy(proposal_map(model).valid).to(device)
    return lambda output, targets, draws: map_loss(output, targets, valid, draws=draws, rules=rules)


class Trainer:
    """A network in training, with optimizer and mean of the weights."""

    def __init__(
        self,
        config: Config,
        rules: LossRules,
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
        self.loss = loss_function(config.model, rules, device)

    def learning_rate(self, epoch: int) -> float:
        settings = self.config.train
        return settings.learning_rate * settings.decay_factor ** (epoch // settings.decay_every)

    def backward(self, features: Tensor, targets: BatchTargets, draws: Tensor, rows: Sequence[int]) -> Losses:
        """Compute the gradients of a joint batch, in every process, and return its losses.

        features: [B, C, T], this process's part.
        targets: labels of the same part.
        draws: of the joint batch, see `losses.regression_loss`.
        rows: B of every process.
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
        """One optimizer step, then the update of the mean weights."""
        settings = self.config.train
        if settings.gradient_clip:
            nn.utils.clip_grad_norm_(self.network.parameters(), settings.gradient_clip)
        self.optimizer.step()
        with torch.no_grad():
            for name, mean in self.mean.items():
                mean.lerp_(self.parameters[name], 1 - settings.ema)

    def batches(self, windows: int, epoch: int) -> list[list[int]]:
        """The joint batches of an epoch: window numbers in random order."""
        order = np.random.default_rng([self.config.train.seed, epoch, _ORDER]).permutation(windows)
        size = self.config.train.batch_size
        batches = [order[first : first + size].tolist() for first in range(0, windows, size)]
        # A process without a window has no part in a step.
        return [batch for batch in batches if len(batch) >= self.processes.count]

    def epoch(self, windows: TrainingWindows, epoch: int, workers: int) -> dict[str, float]:
        """Train on all windows once and return the mean of each loss over the steps."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(epoch)
        batches = self.batches(len(windows), epoch)
        if self.config.train.shift_windows:
            windows.shift(np.random.default_rng([self.config.train.seed, epoch, _SHIFTS]))
        # A forked worker must not inherit open HDF5 files.
        windows.archive.close()

        def loader(parts: Sequence[list[int]], one_by_one: bool) -> DataLoader:
            return DataLoader(
                windows,
                batch_sampler=parts,
                num_workers=min(workers, 1) if one_by_one else workers,
                worker_init_fn=end_with_parent(),
                pin_memory=self.device.type == "cuda",
                generator=torch.Generator(),  # else starting the workers draws from the global random state
            )

        seed = self.config.train.seed
        seed_torch(seed, epoch, _DROPOUT, self.processes.rank)
        drawn = torch.Generator().manual_seed(mixed(seed, epoch, _DRAWS))
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

        steps = zip(batches, read_in_order([self.processes.part(batch) for batch in batches], loader), strict=True)
        # In a log file, the line at the end of the epoch is enough.
        hidden = not (self.processes.first and sys.stderr.isatty())
        for batch, read in progress(steps, len(batches), f"steps of epoch {epoch + 1}", note, hidden=hidden):
            if read is None:
                raise InputError(
                    "the process that reads the windows was killed, probably because memory ran out; "
                    "continue with --resume and --workers 0"
                )
            features, targets = read
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
            video = max(windows.videos, key=lambda video: video.largest)
            raise InputError(
                f"the loss is {means['total']} in epoch {epoch + 1} with learning rate {self.learning_rate(epoch):g}, "
                "expected a finite number; lower --learning-rate "
                f"(the largest feature value is {video.largest:.3g}, of video {video.annotation.id!r})"
            )
        return means

    def weights(self) -> dict[str, Tensor]:
        """The trained weights: their running mean where `train.ema` asks for one."""
        return self.network.state_dict() | self.mean

    def state(self) -> dict[str, Tensor]:
        """All tensors that another trainer needs to continue."""
        moments = self.optimizer.state_dict()["state"]
        return {
            **{f"network.{name}": tensor for name, tensor in self.network.state_dict().items()},
            **{f"mean.{name}": tensor for name, tensor in self.mean.items()},
            **{f"adam.{p}.{name}": tensor for p, of_one in moments.items() for name, tensor in of_one.items()},
        }

    def restore(self, state: dict[str, Tensor], source: str = "state") -> None:
        """Load what `state` returned. InputError: names `source`, and every key that does not fit this network."""
        self._require_fit(state, source)
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

    def _require_fit(self, state: dict[str, Tensor], source: str) -> None:
        expected = {f"network.{name}": list(tensor.shape) for name, tensor in self.network.state_dict().items()}
        expected |= {f"mean.{name}": list(tensor.shape) for name, tensor in self.mean.items()}
        # A parameter that no loss depends on has no moments.
        moments: dict[str, list[int]] = {}
        for number, parameter in enumerate(self.network.parameters()):
            of_one = {"step": [], "exp_avg": list(parameter.shape), "exp_avg_sq": list(parameter.shape)}
            of_one = {f"adam.{number}.{name}": shape for name, shape in of_one.items()}
            if not state.keys().isdisjoint(of_one):
                moments |= of_one
        problems = mismatches(expected | moments, {name: list(tensor.shape) for name, tensor in state.items()})
        odd = [f"{name} ({t.dtype})" for name, t in state.items() if t.dtype != torch.float32]
        wrong = [name for name, tensor in state.items() if tensor.dtype == torch.float32 and not is_finite(tensor)]
        problems |= {kind: names for kind, names in (("not float32", odd), ("not finite", wrong)) if names}
        if problems:
            raise InputError(unfitting(source, problems))
