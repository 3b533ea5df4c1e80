"""The systems as they can be run: the plain reference, exports of it to other engines, and this package.

All take the same steps from features to proposals. They differ in the network and in the post-processing: this
package's operators, or Python loops as in public code (`plain_match.search` finds the anchor of every boundary pair
among all anchors, `soft_nms_cases.python_loop` picks proposals). Exports replace the network alone.
"""

from __future__ import annotations

import abc
import dataclasses
import importlib.util
import logging
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import bcnet_fast
from bcnet_fast.config import Config
from bcnet_fast.data.windows import cut, window_starts
from bcnet_fast.geometry.anchors import make_anchors
from bcnet_fast.geometry.proposal_map import proposal_map
from bcnet_fast.inference import Predictor
from bcnet_fast.inference.model import Model
from bcnet_fast.networks.outputs import BCNetOutput, MapOutput, Output
from bcnet_fast.networks.reference import NETWORKS
from bcnet_fast.networks.releases import convert_bcnet
from bcnet_fast.ops import native, use_backend
from bcnet_fast.presets import PRESETS
from bcnet_fast.proposals import ProposalGenerator, WindowProposals
from bcnet_fast.proposals.candidates import cell_candidates, match_candidates
from bcnet_fast.protocols import DEFAULT as PROTOCOL
from bcnet_fast.storage.checkpoint import read_config, save_checkpoint

from . import seeded
from .environment import ROOT
from .plain_match import match_one_window, search
from .soft_nms_cases import python_loop

GOLDEN = ROOT / "tests" / "golden"
SEED = 101  # of the golden network outputs
# Bounds on the difference from the reference's scores, root mean square over a window. float32 sums in another order;
# seeded weights, whose attention is sharper than that of trained ones, enlarge the errors of lower precisions.
TOLERANCES = {"fp32": 1e-4, "bf16": 0.15, "fp16": 0.02, "int8": 0.15}


def lengths_of(windows: Tensor) -> Tensor:
    """Lengths of windows without padding."""
    return torch.full((len(windows),), windows.shape[-1])


class System(abc.ABC):
    """From features to proposals. Subclasses say how each stage is done."""

    precision = "fp32"

    def __init__(self, config: Config) -> None:
        self.config = config

    def set_threshold(self, threshold: float | None) -> None:
        """Set BCNet's boundary threshold: snippets above it are boundaries even if they are no peak."""
        if threshold is not None:
            self.config = with_threshold(self.config, threshold)

    @abc.abstractmethod
    def scores(self, features: Tensor) -> Output:
        """features [B, C, T], in host memory -> all scores of all anchors"""

    def network(self, features: Tensor, lengths: Tensor) -> Output:
        """The scores for proposals; scores that no boundary pair needs may be left out."""
        return self.scores(features)

    @abc.abstractmethod
    def candidates(self, output: Output, lengths: Tensor) -> Any:
        """Input of Soft-NMS: boundary pairs with their anchors, refinement and confidence."""

    @abc.abstractmethod
    def postprocess(self, output: Output, lengths: Tensor) -> WindowProposals:
        """Candidates, and the Soft-NMS of each window."""

    @abc.abstractmethod
    def merge(self, segments: Tensor, scores: Tensor, decayed: Tensor) -> tuple[Tensor, Tensor]:
        """The Soft-NMS over all windows of a video."""

    def windows(self, features: Tensor, lengths: Tensor) -> WindowProposals:
        """The whole way, for a batch of windows."""
        return self.postprocess(self.network(features, lengths), lengths)

    def video(self, features: np.ndarray) -> tuple[Tensor, Tensor]:
        """The whole way, for a video's features [S, C]: segments [n, 2] in snippets and scores [n], best first."""
        size = self.config.model.window
        starts = window_starts(len(features), size, self.config.data.window_stride, keep_tail=True)
        lengths = torch.tensor([min(size, len(features) - start) for start in starts])
        found = self.windows(torch.from_numpy(cut(features, starts, size)), lengths)
        moved = found.segments + torch.tensor(starts)[found.window, None]
        return self.merge(moved, found.scores, found.decayed)


class Plain(System):
    """Any network, with the post-processing in Python."""

    def __init__(self, network: Callable[[Tensor], Output], config: Config, device: str = "cpu") -> None:
        super().__init__(config)
        self.call, self.device = network, device

    @torch.inference_mode()
    def scores(self, features: Tensor) -> Output:
        # One window fills a CPU: none of the engines is faster with several at once.
        parts = features.split(1 if self.device == "cpu" else len(features))
        return Output.cat([self.call(part.to(self.device)) for part in parts])

    @abc.abstractmethod
    def candidates(self, output: Any, lengths: Tensor) -> list[list[tuple[float, float, float]]]:
        """Candidates of each window: start and end in snippets, and score."""

    def _suppress(self, segments: list, scores: list[float], most: int) -> tuple[list[int], list[float]]:
        settings, window = self.config.proposals, self.config.model.window
        relative = [[edge / window for edge in segment] for segment in segments]
        # Scores of 0 and below are no proposals.
        return python_loop(relative, scores, 0.0, settings.sigma, math.ulp(0.0), most, settings.iou_threshold)

    def postprocess(self, output: Output, lengths: Tensor) -> WindowProposals:
        kept = []
        for window, rows in enumerate(self.candidates(output, lengths)):
            segments, scores = [row[:2] for row in rows], [row[2] for row in rows]
            for index, decayed in zip(*self._suppress(segments, scores, self.config.proposals.window_top), strict=True):
                kept.append((window, *segments[index], scores[index], decayed))
        table = torch.tensor(kept, dtype=torch.float64).reshape(-1, 5)
        return WindowProposals(table[:, 0].long(), table[:, 1:3], table[:, 3], table[:, 4])

    def merge(self, segments: Tensor, scores: Tensor, decayed: Tensor) -> tuple[Tensor, Tensor]:
        if self.config.data.rescale:
            return segments, decayed
        indices, final = self._suppress(segments.tolist(), scores.tolist(), self.config.proposals.top)
        return segments[indices], torch.tensor(final, dtype=torch.float64)


class PlainAnchors(Plain):
    """BCNet."""

    def __init__(self, network: Callable[[Tensor], Output], config: Config, device: str = "cpu") -> None:
        super().__init__(network, config, device)
        self.anchors = make_anchors(config.model.window, config.model.max_duration).tolist()
        self.matching = search(self.anchors)

    def candidates(self, output: BCNetOutput, lengths: Tensor) -> list[list[tuple[float, float, float]]]:
        model, settings = self.config.model, self.config.proposals
        names = ("start", "end", "classification", "regression", "background")
        columns = [getattr(output, name).double().tolist() for name in names]
        found = []
        for *scores, length in zip(*columns, lengths.tolist(), strict=True):
            rows = match_one_window(
                *scores,
                self.anchors,
                self.matching,
                model.max_duration,
                length=length,
                boundary_threshold=settings.boundary_threshold,
                min_classification=settings.min_classification,
                min_regression=settings.min_regression,
                max_snippets=settings.max_snippets,
            )
            found.append([row[2:] for row in rows])
        return found


class PlainMap(Plain):
    """BMN and G-TAD: a loop over the cells of the map."""

    def candidates(self, output: MapOutput, lengths: Tensor) -> list[list[tuple[float, float, float]]]:
        settings, cells = self.config.proposals, proposal_map(self.config.model)
        start, end, confidence = (x.double().tolist() for x in (output.start, output.end, output.confidence))
        first, last, valid = cells.start.tolist(), cells.end.tolist(), cells.valid.tolist()
        found = []
        for window, length in enumerate(lengths.tolist()):
            starts, ends = range(length), range(length + 1)
            if settings.boundary_peaks:
                starts = {0, *_peaks(start[window][:length])}
                ends = {length, length - 1, *_peaks(end[window][:length])}
            regression, classification = confidence[window]
            rows = []
            for r, row in enumerate(valid):
                for c, is_valid in enumerate(row):
                    s, e = first[r][c], last[r][c]
                    if not is_valid or e > length or s not in starts or e not in ends:
                        continue
                    if settings.max_snippets is not None and e - s >= settings.max_snippets:
                        continue
                    score = start[window][s] * end[window][min(e, length - 1)] if settings.boundary_scores else 1.0
                    rows.append((s, e, score * classification[r][c] * regression[r][c]))
            found.append(rows)
        return found


def _peaks(probability: list[float]) -> list[int]:
    """Inner snippets that are above both neighbours, or above half of the highest."""
    half = max(probability) / 2
    inner = range(1, len(probability) - 1)
    return [t for t in inner if probability[t] > half or probability[t - 1] < probability[t] > probability[t + 1]]


def plain(network: Callable[[Tensor], Output], config: Config, device: str = "cpu") -> Plain:
    return (PlainAnchors if config.model.name == "bcnet" else PlainMap)(network, config, device)


class Engine(System):
    """This package."""

    def __init__(self, model: Model) -> None:
        super().__init__(model.config)
        self.model, self.precision = model, model.precision

    def set_threshold(self, threshold: float | None) -> None:
        super().set_threshold(threshold)
        self.model.config = self.config

    def scores(self, features: Tensor) -> Output:
        return self.model(features)

    def network(self, features: Tensor, lengths: Tensor) -> Output:
        return Predictor(self.model, PROTOCOL).scores(features, lengths)

    def candidates(self, output: Output, lengths: Tensor) -> Any:
        of_system = match_candidates if isinstance(output, BCNetOutput) else cell_candidates
        with use_backend(self.model.backend):
            return of_system(output, lengths.to(self.model.device), self.config, PROTOCOL.candidates)

    def postprocess(self, output: Output, lengths: Tensor) -> WindowProposals:
        with use_backend(self.model.backend):
            return ProposalGenerator(self.config, PROTOCOL).window_proposals(output, lengths.to(self.model.device))

    def merge(self, segments: Tensor, scores: Tensor, decayed: Tensor) -> tuple[Tensor, Tensor]:
        with use_backend(self.model.backend):
            return ProposalGenerator(self.config, PROTOCOL).video_proposals(segments, scores, decayed)


def example_for(model: Model) -> Tensor:
    return torch.zeros(1, model.config.model.feature_dim, model.config.model.window, device=model.device)


def loaded_reference(checkpoint: Path, device: str) -> Model:
    """The reference with its sampling matrix, which the first window makes: a constant when the network is traced."""
    model = bcnet_fast.load(checkpoint, device=device, backend="reference")
    with torch.no_grad():
        model.network(example_for(model))
    return model


def export_onnx(checkpoint: Path) -> None:
    """Write the reference network as ONNX beside its checkpoint, for one window."""
    model = loaded_reference(checkpoint, "cpu")

    class Columns(torch.nn.Module):
        """ONNX knows tuples of tensors, and no dataclasses."""

        def __init__(self) -> None:
            super().__init__()
            self.network = model.network

        def forward(self, features: Tensor) -> tuple[Tensor, ...]:
            return tuple(self.network(features).columns().values())

    # The exporter warns of its own code, and of torchvision, which nothing here needs.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = checkpoint.with_suffix(".onnx")
        torch.onnx.export(Columns(), (example_for(model),), path, input_names=["features"], dynamo=True, verbose=False)


def reference(checkpoint: Path, device: str) -> System:
    model = bcnet_fast.load(checkpoint, device=device, backend="reference")
    return plain(model.network, model.config, device)


def compiled(checkpoint: Path, device: str) -> System:
    model = loaded_reference(checkpoint, device)
    return plain(torch.compile(model.network), model.config, device)


def exported(checkpoint: Path) -> tuple[Config, type[Output]]:
    """The configuration of an exported network, and the class of its columns."""
    config = read_config(checkpoint)
    return config, BCNetOutput if config.model.name == "bcnet" else MapOutput


def onnxruntime(checkpoint: Path, device: str) -> System:
    import onnxruntime

    config, output = exported(checkpoint)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(checkpoint.with_suffix(".onnx"), options, providers=["CPUExecutionProvider"])

    def network(features: Tensor) -> Output:
        columns = session.run(None, {"features": features.numpy()})
        return output(*map(torch.from_numpy, columns))

    return plain(network, config)


def openvino(checkpoint: Path, device: str) -> System:
    import openvino

    config, output = exported(checkpoint)
    options = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = openvino.Core().compile_model(checkpoint.with_suffix(".onnx"), "CPU", options).create_infer_request()

    def network(features: Tensor) -> Output:
        columns = request.infer({0: features.numpy()})
        # Its outputs lie in memory that the next call writes to.
        return output(*(torch.from_numpy(columns[i].copy()) for i in range(len(columns))))

    return plain(network, config)


EXPORTS = {"onnxruntime": onnxruntime, "openvino": openvino}


def engine(precision: str) -> Callable[[Path, str], System]:
    def load(checkpoint: Path, device: str) -> System:
        with warnings.catch_warnings():
            # The table itself shows that some precisions are slow on a CPU.
            warnings.simplefilter("ignore")
            return Engine(bcnet_fast.load(checkpoint, device=device, precision=precision))

    return load


def variants(device: str, system: str) -> dict[str, Callable[[Path, str], System]]:
    """Everything that can be run on the device, the baseline first; int8 is for BCNet."""
    found = {"reference": reference, "torch.compile": compiled}
    if device == "cpu":
        for name, load in EXPORTS.items():
            if all(importlib.util.find_spec(module) for module in (name, "onnx", "onnxscript")):
                found[name] = load
    precisions = ["fp32", "bf16"]
    if device == "cuda":
        precisions.append("fp16")  # in which a window takes PyTorch minutes on most processors
    elif native.module and system == "bcnet":
        precisions.append("int8")
    return found | {f"bcnet_fast {name}": engine(name) for name in precisions}


def write_checkpoint(folder: Path, system: str, preset: str) -> Path:
    """Write BCNet with the seeded golden weights, through files as in the release; others with random weights."""
    config = PRESETS[system][preset]
    path = folder / f"{system}_{preset}.safetensors"
    if system == "bcnet":
        bpm, abi = seeded.release_files(folder, GOLDEN, SEED)
        save_checkpoint(path, convert_bcnet(bpm, abi, config), config)
        bpm.unlink()
        abi.unlink()
    else:
        torch.manual_seed(SEED)
        save_checkpoint(path, NETWORKS[system](config.model).state_dict(), config)
    return path


def with_threshold(config: Config, threshold: float) -> Config:
    return dataclasses.replace(config, proposals=dataclasses.replace(config.proposals, boundary_threshold=threshold))


def matched_anchors(output: BCNetOutput, lengths: Tensor, config: Config) -> Tensor:
    """Which anchors some boundary pair matches, bool [B, P]."""
    return ProposalGenerator(config, PROTOCOL).needed_anchors(output, lengths.to(output.start.device)).cpu()


def threshold_for(share: float, output: BCNetOutput, lengths: Tensor, config: Config) -> float:
    """The boundary threshold with which the share of matched anchors is closest to `share`."""

    def distance(threshold: float) -> float:
        matched = matched_anchors(output, lengths, with_threshold(config, threshold))
        return abs(float(matched.float().mean()) - share)

    return min(torch.cat([output.start, output.end]).unique().tolist(), key=distance)
