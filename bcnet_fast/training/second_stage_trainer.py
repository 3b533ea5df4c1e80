"""Training of P-GCN and MUSES-Net: steps over batches of videos.

All randomness of an epoch follows from the seed and the epoch's number, so that weights, momenta and the number of
finished epochs are the whole state of a training.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..config import SecondStageConfig
from ..data.workers import end_with_parent, read_in_order
from ..errors import InputError
from ..inference.second_stage import RELEASE_SEED
from ..networks.outputs import SecondStageOutput
from ..networks.trainable import SECOND_STAGE
from ..ops.precision import gpu_products
from ..progress import progress
from ..storage.checkpoint import is_finite, mismatches, unfitting
from .second_stage_data import SampledVideo, SecondStageSamples
from .second_stage_losses import second_stage_loss
from .second_stage_samples import Samples
from .seeding import seed_torch

BIAS_RATE = 2.0  # the learning rate of biases, as a multiple of that of weights
_ORDER, _DRAWS, _DROPOUT = range(3)  # what is drawn

Visit = tuple[int, Samples]  # number of a video, drawn proposals


class SecondStageTrainer:
    """A network in training, with its optimizer."""

    def __init__(self, config: SecondStageConfig, device: torch.device, *, release: bool = False) -> None:
        """release: draw from one generator, the same in every epoch, and drop an incomplete last batch."""
        self.config, self.device, self.release = config, device, release
        settings = config.train
        torch.manual_seed(settings.seed)
        self.network = SECOND_STAGE[config.model.name](config.model).to(device).train()
        named = list(self.network.named_parameters())
        weights = [parameter for name, parameter in named if not name.endswith("bias")]
        biases = [parameter for name, parameter in named if name.endswith("bias")]
        rate = settings.learning_rate
        self.optimizer = torch.optim.SGD(
            [
                {"params": weights, "weight_decay": settings.weight_decay},
                {"params": biases, "lr": BIAS_RATE * rate},
            ],
            lr=rate,
            momentum=settings.momentum,
        )

    def learning_rate(self, epoch: int) -> float:
        settings = self.config.train
        return settings.learning_rate * settings.decay_factor ** sum(epoch >= at for at in settings.decay_at)

    def batches(self, videos: int, epoch: int) -> list[list[int]]:
        """The videos of each step of an epoch, in random order, each of them `pools.passes` times."""
        visits = videos * self.config.pools.passes
        order = np.random.default_rng([self.config.train.seed, epoch, _ORDER]).permutation(visits) % videos
        size = self.config.train.batch_size
        batches = [order[first : first + size].tolist() for first in range(0, visits, size)]
        if self.release and len(batches) > 1 and len(batches[-1]) < size:
            batches.pop()
        return batches

    def drawn(self, samples: SecondStageSamples, epoch: int) -> list[list[Visit]]:
        """The same with the proposals of each visit."""
        stream = np.random.RandomState(RELEASE_SEED) if self.release else None
        visits, number = [], 0
        for batch in self.batches(len(samples), epoch):
            of_batch = []
            for video in batch:
                generator = stream or np.random.default_rng([self.config.train.seed, epoch, _DRAWS, number])
                of_batch.append((video, samples.draw(video, generator)))
                number += 1
            visits.append(of_batch)
        return visits

    def backward(self, batch: Sequence[SampledVideo]) -> dict[str, float]:
        """Compute the gradients of a step and return its losses."""
        self.optimizer.zero_grad()
        single = self.config.train.single_videos
        parts = [[video] for video in batch] if single else [batch]
        total: dict[str, float] = {}
        for part in parts:
            with gpu_products():
                output = self._scores(part)
                kinds, labels, targets = (
                    torch.cat([getattr(video, name) for video in part]).to(self.device)
                    for name in ("kinds", "labels", "targets")
                )
                losses = second_stage_loss(output, kinds, labels, targets)
                (losses["total"] / len(parts)).backward()
            for name, loss in losses.items():
                total[name] = total.get(name, 0.0) + loss.item() / len(parts)
        return total

    def _scores(self, batch: Sequence[SampledVideo]) -> SecondStageOutput:
        inputs = [[tensor.to(self.device) for tensor in video.inputs] for video in batch]
        if self.config.model.name == "pgcn":
            return self.network(*joined_pools(inputs))
        outputs = [vars(self.network(*one)) for one in inputs]
        return SecondStageOutput(**{name: torch.cat([output[name] for output in outputs]) for name in outputs[0]})

    def epoch(self, samples: SecondStageSamples, epoch: int, workers: int) -> dict[str, float]:
        """Train on all videos and return the mean of each loss over the steps."""
        rate = self.learning_rate(epoch)
        for group, factor in zip(self.optimizer.param_groups, (1.0, BIAS_RATE), strict=True):
            group["lr"] = factor * rate
        visits = self.drawn(samples, epoch)
        # A forked worker must not inherit open HDF5 files.
        samples.archive.close()

        def loader(batches: Sequence[list[Visit]], one_by_one: bool) -> DataLoader:
            return DataLoader(
                samples,
                batch_sampler=batches,
                num_workers=min(workers, 1) if one_by_one else workers,
                collate_fn=list,
                worker_init_fn=end_with_parent(),
                generator=torch.Generator(),  # else starting the workers draws from the global random state
            )

        seed_torch(self.config.train.seed, epoch, _DROPOUT)
        self.network.train()
        sums: dict[str, float] = {}
        done = 0

        def note() -> str:
            return ", ".join(f"{name} {value / max(done, 1):.3f}" for name, value in sums.items())

        steps = progress(
            read_in_order(visits, loader),
            len(visits),
            f"steps of epoch {epoch + 1}",
            note,
            hidden=not sys.stderr.isatty(),
        )
        for batch in steps:
            if batch is None:
                raise InputError(
                    "the process that reads the features was killed, probably because memory ran out; "
                    "continue with --resume and --workers 0"
                )
            losses = self.backward(batch)
            self.optimizer.step()
            sums = {name: sums.get(name, 0.0) + loss for name, loss in losses.items()}
            done += 1
        means = {name: value / done for name, value in sums.items()}
        if not all(np.isfinite(list(means.values()))):
            raise InputError(
                f"the loss is {means['total']} in epoch {epoch + 1} with learning rate {rate:g}, "
                "expected a finite number; lower --learning-rate"
            )
        return means

    def weights(self) -> dict[str, Tensor]:
        return self.network.state_dict()

    def state(self) -> dict[str, Tensor]:
        """All tensors that another trainer needs to continue."""
        moments = self.optimizer.state_dict()["state"]
        return {
            **{f"network.{name}": tensor for name, tensor in self.network.state_dict().items()},
            **{f"momentum.{number}": of_one["momentum_buffer"] for number, of_one in moments.items()},
        }

    def restore(self, state: dict[str, Tensor], source: str = "state") -> None:
        """Load what `state` returned. InputError: names `source`, and every key that does not fit this network."""
        stored = self.optimizer.state_dict()
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        expected = {f"network.{name}": list(tensor.shape) for name, tensor in self.network.state_dict().items()}
        expected |= {f"momentum.{number}": list(tensor.shape) for number, tensor in enumerate(parameters)}
        problems = mismatches(expected, {name: list(tensor.shape) for name, tensor in state.items()})
        odd = [f"{name} ({t.dtype})" for name, t in state.items() if t.dtype != torch.float32]
        wrong = [name for name, tensor in state.items() if tensor.dtype == torch.float32 and not is_finite(tensor)]
        problems |= {kind: names for kind, names in (("not float32", odd), ("not finite", wrong)) if names}
        if problems:
            raise InputError(unfitting(source, problems))
        network = {name: tensor for name, tensor in state.items() if name.startswith("network.")}
        self.network.load_state_dict({name.removeprefix("network."): tensor for name, tensor in network.items()})
        moments = {
            number: {"momentum_buffer": state[f"momentum.{number}"].to(self.device)}
            for number in range(len(parameters))
        }
        self.optimizer.load_state_dict({"state": moments, "param_groups": stored["param_groups"]})


def joined_pools(inputs: Sequence[Sequence[Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Proposals of several videos as those of one: features one below the other, trees with their new numbers."""
    starts = np.cumsum([0, *(len(activity) for activity, _, _ in inputs)]).tolist()
    activity, completeness = (torch.cat([one[part] for one in inputs]) for part in (0, 1))
    trees = torch.cat([one[2] + start for one, start in zip(inputs, starts, strict=False)])
    return activity, completeness, trees
