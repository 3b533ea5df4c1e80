"""A complete extraction run: from video files to a folder of features with sidecars, or to one HDF5 file."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from ..data.hdf5 import SUFFIXES
from ..data.sidecar import Sidecar
from ..data.workers import KILLED, end_with_parent, read_in_order
from ..errors import InputError
from ..ops.devices import resolve_device
from ..progress import progress
from ..recipe import Recipe
from ..storage.lock import locked_folder
from ..storage.output import remove_leftovers
from ..text import count, shown
from .backbones import Backbone, BackboneOptions, Joined, open_backbones
from .decoding import Video
from .extraction import ReadOptions, extract_video, find_features
from .hdf5_output import Hdf5Output
from .listing import list_videos
from .recipes import find_recipe


@dataclass(frozen=True)
class NetworkOptions:
    """Which recipe and networks make features. A field has the meaning of the flag with the same name.

    backbone, weights: one for each stream of the recipe; empty for those of the recipe and of the libraries.
    frame_rate: frames a second that are sampled.
    """

    recipe: str | None = None
    backbone: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    flow: str | None = None
    flow_weights: str | None = None
    trust_backbone: bool = False
    clip: int | None = None
    stride: int | None = None
    frame_rate: float | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.frame_rate is not None and not 0.01 <= self.frame_rate <= 1000:
            raise InputError(f"--frame-rate is {self.frame_rate:g}, expected a number from 0.01 to 1000")

    def open(self, known: Recipe | None = None) -> Backbone | Joined:
        """Open the network, or that of each stream.

        known: recipe of a checkpoint, if no other is named.

        InputError: see `open_backbones`; or the features would differ from those of `known`.
        """
        recipe = find_recipe(self.recipe) if self.recipe else known
        for flag in ("flow", "flow_weights"):
            value, streams = getattr(self, flag), (recipe.streams or (recipe,)) if recipe else ()
            if value is not None and all(stream.modality == "rgb" for stream in streams):
                raise InputError(f"--{flag.replace('_', '-')} is {value}, expected none without a recipe of flow")
        changes = {"clip": self.clip, "stride": self.stride, "fps": self.frame_rate, "flow": self.flow}
        stated = {name: value for name, value in changes.items() if value is not None}
        device = resolve_device(self.device)
        options = BackboneOptions(device, flow_weights=self.flow_weights, trusted=self.trust_backbone)
        backbone = open_backbones(self.backbone, recipe, options, self.weights, stated)
        unlike = known.difference(backbone.recipe) if known else None
        if known is not None and unlike:
            raise InputError(
                f"recipe {backbone.recipe.name} does not fit the checkpoint, which was trained on {unlike}"
            )
        return backbone


class Network:
    """The networks of a run. A copy in another process opens them again, when it needs them.

    threads: of PyTorch; other processes have as many, so that their features are the same.

    InputError: see `NetworkOptions.open`.
    """

    def __init__(self, options: NetworkOptions, known: Recipe | None = None) -> None:
        self.options, self.known, self.threads = options, known, torch.get_num_threads()
        self._backbone: Backbone | Joined | None = options.open(known)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_backbone": None}

    @property
    def backbone(self) -> Backbone | Joined:
        if self._backbone is None:
            self._backbone = self.options.open(self.known)
        return self._backbone


@dataclass(frozen=True)
class ExtractOptions:
    """Options of `extract`. A field has the meaning of the argument or flag with the same name."""

    videos: tuple[str, ...]
    output: str
    network: NetworkOptions = field(default_factory=NetworkOptions)
    read: ReadOptions = field(default_factory=ReadOptions)
    workers: int = 0
    overwrite: bool = False


@dataclass
class ExtractReport:
    """Result of `extract`: counts, and for each video that failed its name and the reason."""

    output: str
    recipe: Recipe
    extracted: int = 0
    kept: int = 0
    rows: int = 0
    video_seconds: float = 0.0
    seconds: float = 0.0
    failures: list[tuple[str, str]] = field(default_factory=list)

    def summary(self) -> str:
        """One line: output folder, counts, speed and recipe."""
        kept = f", {count(self.kept, 'video')} already there" if self.kept else ""
        recipe = self.recipe
        return (
            f"{self.output}: {count(self.extracted, 'video')}, {count(self.rows, 'row')} of {recipe.width} channels"
            f"{kept}; {self.video_seconds:.1f} s of video in {self.seconds:.1f} s; "
            f"recipe {recipe.name}, {recipe.backbone}"
        )


def extract(options: ExtractOptions, known: Recipe | None = None) -> ExtractReport:
    """Write the features of every video; those that are there from the same recipe and file are kept.

    known: recipe of a checkpoint that will use them.

    InputError: an option cannot be used, or every video failed.
    """
    started = time.perf_counter()
    network = Network(options.network, known)
    videos, failures = list_videos(options.videos)
    report = ExtractReport(options.output, network.backbone.recipe, failures=failures)
    output = Path(options.output)
    with contextlib.ExitStack() as opened:
        store = None
        if output.suffix.lower() in SUFFIXES and not output.is_dir():
            store = opened.enter_context(contextlib.closing(Hdf5Output(output)))
        else:
            opened.enter_context(locked_folder(output, "features.npy"))
        run = _Run(store.parts if store else output, store, network, options, report)
        waiting = [(name, path) for name, path in videos.items() if not run.is_settled(name, path)]
        lengths = {name: length for name, path in waiting if (length := run.length(name, path)) is not None}
        steps = run.extract({name: path for name, path in waiting if name in lengths})
        total = int(sum(lengths.values()))
        for _ in progress(steps, total, "s of video", lambda: run.current, at=lambda: int(run.seconds)):
            pass
        if store:
            store.finish(run.written)
    report.seconds = time.perf_counter() - started
    if failures and not report.extracted and not report.kept:
        others = f" (and {count(len(failures) - 1, 'other video')} failed)" if len(failures) > 1 else ""
        raise InputError(f"{failures[0][1]}{others}")
    return report


class _Run:
    """Extracts videos one by one into a folder; `store` is the file that gets them afterwards, if there is one."""

    def __init__(
        self,
        folder: Path,
        store: Hdf5Output | None,
        network: Network,
        options: ExtractOptions,
        report: ExtractReport,
    ) -> None:
        self.folder, self.store, self.network = folder, store, network
        self.options, self.report = options, report
        self.written: list[str] = []  # videos whose features are in the folder
        self.current, self.seconds = "", 0.0  # name of the video, and seconds of all videos that are done

    def is_settled(self, name: str, path: Path) -> bool:
        """Whether a video has its features, or cannot get them, because others are in their place."""
        try:
            target, recipe, overwrite = self._target(name), self.report.recipe, self.options.overwrite
            if self.store is None or overwrite or self.store.find(name, path, recipe) is None:
                if find_features(target, path, recipe, overwrite=overwrite) is None:
                    return False
                self.written.append(name)
        except (InputError, OSError) as error:
            self.report.failures.append((name, str(error)))
            return True
        self.report.kept += 1
        return True

    def length(self, name: str, path: Path) -> float | None:
        """Seconds of a video, as its header states them; None where it cannot be opened, which is a failure."""
        try:
            with Video(path, 1) as video:
                return video.facts.duration or video.facts.longest or 0.0
        except InputError as error:
            self.report.failures.append((name, str(error)))
            return None

    def extract(self, videos: dict[str, Path]) -> Iterator[None]:
        """Extract all videos, and yield after each few rows or, with workers, after each video."""
        if self.options.workers:
            yield from self._in_workers(list(videos.items()))
            return
        for name, path in videos.items():
            self.current, before = shown(path.name), self.seconds
            try:
                steps = extract_video(path, self._target(name), self.network.backbone, self.options.read)
                while True:
                    self.seconds = before + next(steps)
                    yield
            except StopIteration as end:
                self._count(name, path, end.value)
            except InputError as error:
                self.report.failures.append((name, str(error)))

    def _in_workers(self, videos: list[tuple[str, Path]]) -> Iterator[None]:
        def loader(items: Sequence[tuple[str, Path]], one_by_one: bool) -> DataLoader:
            workers = 1 if one_by_one else min(self.options.workers, len(items))
            targets = [(path, self._target(name)) for name, path in items]
            return DataLoader(
                _Extraction(self.network, self.options, targets),
                batch_size=None,
                num_workers=workers,
                # Results are small, so no process has to wait until earlier ones are taken.
                prefetch_factor=1 if one_by_one else -(-len(items) // workers),
                collate_fn=_unchanged,
                worker_init_fn=end_with_parent(self.network.threads),
                # Networks and their threads do not survive a fork.
                multiprocessing_context="spawn",
                generator=torch.Generator(),
            )

        for (name, path), found in zip(videos, read_in_order(videos, loader), strict=True):
            self.current = shown(path.name)
            if isinstance(found, Sidecar):
                self.seconds += found.duration
                self._count(name, path, found)
            else:
                self.report.failures.append((name, str(found or KILLED.format(name))))
            yield
        remove_leftovers(self.folder)  # of processes that were killed

    def _target(self, name: str) -> Path:
        return self.folder / f"{name}.npy"

    def _count(self, name: str, path: Path, facts: Sidecar) -> None:
        self.written.append(name)
        self.report.extracted += 1
        self.report.rows += facts.rows
        self.report.video_seconds += facts.duration
        for note in facts.notes:
            print(f"note: {shown(str(path))}: {note}", file=sys.stderr)


class _Extraction(Dataset):
    """Extracts the videos (path, target) in the process that asks for them: an item is a sidecar, or an InputError."""

    def __init__(self, network: Network, options: ExtractOptions, videos: Sequence[tuple[Path, Path]]) -> None:
        self.network, self.options, self.videos = network, options, videos

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> Sidecar | InputError:
        path, target = self.videos[index]
        try:
            backbone = self.network.backbone
            # A process that was killed may have been asked for it before.
            there = find_features(target, path, backbone.recipe, overwrite=self.options.overwrite)
            return there or _end_of(extract_video(path, target, backbone, self.options.read))
        except InputError as error:
            return error


def _end_of(steps: Generator[float, None, Sidecar]) -> Sidecar:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def _unchanged(item: Any) -> Any:
    return item
