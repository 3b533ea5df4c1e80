"""A complete inference run: from a feature archive to a result file, pictures and subtitles."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ..config import Config
from ..data.annotations import VideoAnnotation, in_subset, read_annotations
from ..data.class_scores import ClassScores, read_class_scores, score_files
from ..data.features import FeatureArchive, open_features
from ..data.sidecar import sidecar_path
from ..data.timing import TimeResolver
from ..errors import InputError
from ..ops import native
from ..ops.backends import choose, use_backend
from ..presets import PRESETS
from ..profiling import Profile, record, stage
from ..progress import progress
from ..protocols import protocol_for
from ..results.boundaries import Boundaries, boundary_path, write_boundaries
from ..results.fusion import fuse_video
from ..results.pictures import PictureWriter
from ..results.view import require_page_name
from ..results.writer import ResultWriter
from ..storage.checkpoint import read_config
from ..storage.files import readable
from ..storage.lock import locked_folder
from ..storage.output import require_apart, require_writable
from ..text import count
from ..threads import FairShare
from ..video.listing import list_videos
from ..video.run import Network
from ..video.source import open_videos
from .model import Model, load
from .options import InferOptions
from .predict import Failure, Predictor, VideoProposals
from .running import feature_files, interruptible, require_fresh, result_files, show, shown_files, take_up
from .settings import details_of, run_settings, version_of


@dataclass(frozen=True)
class InferReport:
    """Result of `infer`."""

    output: str
    videos: int
    windows: int
    proposals: int
    seconds: float
    details: str
    failures: tuple[Failure, ...]
    profile: Profile | None
    drawing_seconds: float = 0.0
    notes: tuple[str, ...] = ()
    # For a page: boundary probabilities of this run, and the video files if it read any.
    curves: Mapping[str, Boundaries] = field(default_factory=dict)
    video_files: Mapping[str, Path] = field(default_factory=dict)

    def summary(self) -> str:
        """One line: output file, counts, speed (pictures not counted) and settings."""
        computing = self.seconds - self.drawing_seconds
        drawing = f" and {self.drawing_seconds:.1f} s for pictures" if self.drawing_seconds else ""
        return (
            f"{self.output}: {count(self.videos, 'video')}, {count(self.windows, 'window')}, "
            f"{count(self.proposals, 'proposal')}; "
            f"{computing:.1f} s{drawing}, {self.windows / computing:.2f} windows/s with loading; {self.details}"
        )


@dataclass(frozen=True)
class Inputs:
    """The inputs of a run, opened and checked. Can be pickled, for processes that share them."""

    config: Config
    archive: FeatureArchive
    unusable: tuple[Failure, ...]  # files given as videos that are not videos
    truth: dict[str, VideoAnnotation]
    class_scores: ClassScores | None
    times: TimeResolver
    pictures: PictureWriter

    @property
    def video_files(self) -> dict[str, Path]:
        """The video files that are read, by id; empty for features."""
        archive = self.archive
        return {video: Path(archive.files(video)[0]) for video in archive.ids} if archive.kind == "videos" else {}


@dataclass(frozen=True)
class Prepared(Inputs):
    """The inputs of a run, with the network."""

    model: Model


def prepare(options: InferOptions) -> Prepared:
    """Open the inputs and load the network. InputError: a file or option cannot be used."""
    return with_network(options, open_inputs(options))


def with_network(options: InferOptions, inputs: Inputs) -> Prepared:
    """Load the network of the inputs. InputError: it cannot be loaded."""
    return Prepared(**vars(inputs), model=_load(options, inputs.config))


def open_inputs(options: InferOptions) -> Inputs:
    """Open the inputs, and load nothing. InputError: a file or option cannot be used."""
    config = resolve_config(options)
    archive, unusable = open_archive(options, config)
    _require_apart(options, archive)
    truth, class_scores = _read_annotations_and_scores(options, config, archive)
    times = resolve_times(options, config, archive, truth)
    pictures = PictureWriter(options.plot, options.plot_format, archive.ids, best=options.best, ground_truth=truth)
    if options.srt:
        require_writable(Path(options.srt) / "subtitles.srt")
    if options.trace:
        require_writable(options.trace)
    if options.page:
        require_page_name(options.page, "--page")
    if options.boundaries:
        require_writable(Path(options.boundaries) / "boundaries.npz")
    return Inputs(config, archive, tuple(unusable), truth, class_scores, times, pictures)


def infer(options: InferOptions) -> InferReport:
    """Write the proposals of every video of an archive. Notes and warnings go to stderr as they arise.

    InputError: a file or option cannot be used, or every video failed.
    """
    started = time.perf_counter()
    require_fresh(options.output, resume=options.resume, overwrite=options.overwrite)
    prepared = prepare(options)
    config, archive, pictures = prepared.config, prepared.archive, prepared.pictures
    with contextlib.ExitStack() as held:
        held.enter_context(held_features(options))
        writer = ResultWriter(
            options.output,
            run_settings(options, config),
            sources=archive.versions(),
            resume=options.resume,
            overwrite=options.overwrite,
        )
        held.enter_context(contextlib.closing(writer))
        videos = take_up(writer, archive.ids, options.features, resume=options.resume)
        details = details_of(options, config)
        if writer.finished is not None and not videos:
            writer.close(discard=True)
            seconds = time.perf_counter() - started
            counts = len(writer.done), 0, writer.finished
            failed, files = prepared.unusable, prepared.video_files
            return InferReport(options.output, *counts, seconds, details, failed, None, video_files=files)
        failures = list(prepared.unusable)
        run = Run(options, prepared, lambda video, _, *columns: writer.add(video, *columns), failures.append)
        recording = record() if options.profile or options.trace else contextlib.nullcontext()
        with interruptible(writer), recording as profile:
            run.predict(archive.reading_order(videos))
        if not writer.done:
            writer.close(discard=True)
            others = f" (and {count(len(failures) - 1, 'other video')} failed)" if len(failures) > 1 else ""
            raise InputError(f"{failures[0].reason}{others}")
        proposals = writer.finish(version_of(config), details)
    seconds = time.perf_counter() - started
    if options.trace and profile is not None:
        profile.write_trace(options.trace)
    return InferReport(
        options.output,
        len(writer.done),
        run.windows,
        proposals,
        seconds,
        details,
        tuple(failures),
        profile,
        pictures.seconds,
        curves=run.curves,
        video_files=prepared.video_files,
    )


def open_archive(options: InferOptions, config: Config) -> tuple[FeatureArchive, list[Failure]]:
    """The features to read, and what is known to be unusable. InputError: there are none that fit the network."""
    every, strip_prefix = options.time.every_for(config), config.data.strip_prefix
    width = config.model.feature_dim
    if not options.videos:
        archive = open_features(
            options.features, feature_dim=width, every=every, strip_prefix=strip_prefix, limits=options.limits
        )
        return archive, []
    if config.recipe is None and options.network.recipe is None and not options.network.backbone:
        source = options.checkpoint or f"preset {config.preset}"
        raise InputError(
            f"{source} states no recipe of features, expected --recipe NAME or --backbone SPEC with videos"
        )
    network = Network(options.network, config.recipe)
    recipe = network.backbone.recipe
    if recipe.width != width:
        raise InputError(
            f"recipe {recipe.name} makes rows of {recipe.width} channels, expected {width} to fit "
            f"{options.checkpoint or config.preset}"
        )
    videos, failures = list_videos(options.videos)
    unusable = [Failure(name, reason) for name, reason in failures]
    if not videos:
        raise InputError(unusable[0].reason)
    keep = Path(options.keep_features) if options.keep_features else None
    archive = open_videos(
        videos, network, options.read, limits=options.limits, every=every, strip_prefix=strip_prefix, keep=keep
    )
    return archive, unusable


def held_features(options: InferOptions) -> contextlib.AbstractContextManager[None]:
    """Keep other runs out of --keep-features. Shards share that folder: each writes the features of its own videos."""
    if not (options.videos and options.keep_features):
        return contextlib.nullcontext()
    return locked_folder(Path(options.keep_features), "features.npy")


def _require_apart(options: InferOptions, archive: FeatureArchive) -> None:
    """InputError: a file to write is one of the inputs, or another one to write."""
    ids, curves, keep = archive.ids, options.boundaries, options.keep_features
    kept = [Path(keep) / f"{Path(archive.files(video)[0]).stem}.npy" for video in ids] if keep else []
    results = result_files(options.output)
    require_apart(
        {
            "--output": results,
            "--trace": options.trace,
            "--page": options.page,
            "--boundaries": [boundary_path(curves, video) for video in ids] if curves else None,
            **shown_files(options.plot, options.plot_format, options.srt, ids),
        },
        checkpoint=options.checkpoint,
        features=feature_files([archive], [*results, *([options.trace] if options.trace else [])]),
        keep_features=[*kept, *map(sidecar_path, kept)],
        weights=options.network.weights,
        flow_weights=options.network.flow_weights,
        times=options.time.times,
        labels=score_files(options.labels),
        ground_truth=options.ground_truth,
    )


class Run:
    """Predicts, draws and stores the videos of a run one by one.

    store: called with id, number of windows, segments, scores and labels of each video.
    fail: called with each video that could not be used.
    """

    def __init__(
        self,
        options: InferOptions,
        prepared: Prepared,
        store: Callable[[str, int, np.ndarray, np.ndarray, np.ndarray | None], None],
        fail: Callable[[Failure], None],
    ) -> None:
        self.options, self.prepared, self.store, self.fail = options, prepared, store, fail
        self.predictor = Predictor(prepared.model, protocol_for(options.protocol, prepared.config))
        self.curves: dict[str, Boundaries] = {}  # for the page
        self.windows = 0

    def predict(self, videos: Sequence[str]) -> None:
        """Predict and store all `videos`. Beside other work, PyTorch has fewer threads meanwhile, see `FairShare`."""
        with FairShare() as share:
            self._predict(videos, share)

    def _predict(self, videos: Sequence[str], share: FairShare) -> None:
        options, prepared = self.options, self.prepared
        found = self.predictor(
            prepared.archive, videos, prepared.times, batch_size=options.batch_size, workers=options.workers
        )
        alone = bool(options.videos) and not options.workers  # each video shows its own progress
        for result in progress(found, total=len(videos), what="videos", hidden=alone):
            share.renew()
            if isinstance(result, Failure):
                self.fail(result)
            elif prepared.class_scores is not None and result.video not in prepared.class_scores:
                reason = f"{options.labels}: no class scores for video {result.video!r}"
                self.fail(Failure(result.video, reason))
            else:
                self._store(result)

    def _store(self, result: VideoProposals) -> None:
        segments, scores, labels = result.segments, result.scores, None
        class_scores = self.prepared.class_scores
        if class_scores is not None:
            rule, top_k = self.options.fusion, self.options.top_k
            try:
                segments, scores, labels = fuse_video(result.video, segments, scores, class_scores, rule, top_k=top_k)
            except ValueError as error:
                self.fail(Failure(result.video, f"{self.options.labels}: {error}"))
                return
        # Drawn before it is stored, because a stored video counts as finished when the run is resumed.
        try:
            with stage("pictures and subtitles"), readable(f"video {result.video!r}", "proposals that can be drawn"):
                self._show(result, segments, scores, labels)
        except InputError as error:
            self.fail(Failure(result.video, str(error)))
            return
        with stage("writing"):
            self.store(result.video, result.windows, segments, scores, labels)
        self.windows += result.windows

    def _show(
        self, result: VideoProposals, segments: np.ndarray, scores: np.ndarray, labels: np.ndarray | None
    ) -> None:
        """Write the picture, the subtitles and the boundary probabilities of a video."""
        boundary = result.boundary_times, result.boundary_start, result.boundary_end
        found, options, prepared = (segments, scores, labels), self.options, self.prepared
        if options.boundaries or options.page:
            times, start, end = (np.asarray(column, np.float32) for column in boundary)
            curves = Boundaries(times, start, end, result.duration)
            if options.boundaries:
                write_boundaries(options.boundaries, result.video, curves)
            else:
                self.curves[result.video] = curves
        annotation = prepared.truth.get(result.video)
        show(result.video, result.duration, boundary, found, prepared.pictures, options.srt, annotation, options.best)


def resolve_config(options: InferOptions) -> Config:
    """Configuration of the checkpoint, or of the preset for random weights. InputError: a flag contradicts it."""
    if options.checkpoint:
        config = read_config(options.checkpoint)
        stored = {"model": config.model.name, "preset": config.preset, "feature_dim": config.model.feature_dim}
        for flag, found in stored.items():
            expected = getattr(options, flag)
            if expected is not None and expected != found:
                name = flag.replace("_", "-")
                raise InputError(f"--{name} is {expected}, expected {found} to fit {options.checkpoint}")
        return config
    if not options.preset:
        raise InputError("--checkpoint is required, or --preset for random weights")
    print(
        "warning: without --checkpoint the weights are random (seed 0), and so is the order of the proposals",
        file=sys.stderr,
    )
    config = PRESETS[options.model or "bcnet"][options.preset]
    width = config.model.feature_dim if options.feature_dim is None else options.feature_dim
    return dataclasses.replace(config, model=dataclasses.replace(config.model, feature_dim=width))


def resolve_times(
    options: InferOptions, config: Config, archive: FeatureArchive, truth: Mapping[str, VideoAnnotation]
) -> TimeResolver:
    """Times of the snippets, with a note where nothing states them. Reduces the archive to the videos of --subset.

    InputError: --fps or --times is required, or a flag contradicts the training of the checkpoint.
    """
    try:
        times, path = options.time.resolver(config, archive), options.time.times
    except InputError as error:
        raise InputError(f"{options.checkpoint}: {error}" if config.trained_on else str(error)) from error
    unused = len(times.table) - len(times.matched(archive.ids)) if path else 0
    if options.subset is not None:
        _keep_subset(options, archive, truth or times.table)
    if path:
        times.require_match(archive.ids, options.features, path)
        if unused:
            print(f"note: {path}: {count(unused, 'video')} without features", file=sys.stderr)
    elif not config.data.rescale and all(times.facts(video).fps is None for video in archive.ids):
        raise InputError("--fps or --times is required: snippet times depend on the frame rate of the videos")
    if not config.data.rescale:
        remark = _remark_on_times(options, config, archive, times)
        if remark:
            print(f"note: {remark}", file=sys.stderr)
    return times


def _keep_subset(options: InferOptions, archive: FeatureArchive, videos: Mapping[str, VideoAnnotation]) -> None:
    source = options.ground_truth or options.time.times
    if source is None:
        raise InputError("--subset requires an annotation file with subsets: --times FILE or --ground-truth FILE")
    assert options.subset is not None
    left_out = archive.keep(in_subset(videos, options.subset, source))
    if not archive.ids:
        raise InputError(f"{options.features} has no video of the subset {options.subset!r} of {source}")
    if left_out:
        print(f"note: {count(left_out, 'video')} left out, not in the subset {options.subset!r}", file=sys.stderr)


def _remark_on_times(options: InferOptions, config: Config, archive: FeatureArchive, times: TimeResolver) -> str | None:
    """Frame rate and stride that neither flags nor files state, and where they come from."""
    base, flags = times.base, options.time.flags
    if config.trained_on is None:
        if all(times.facts(video).row_stride is not None for video in archive.ids):
            return None
        return (
            f"without --stride, assuming {config.data.stride:g} video frames between rows, as in preset {config.preset}"
        )
    if options.videos or all(map(times.sidecar, archive.ids)):
        return None
    stated = [times.table[video] for video in times.matched(archive.ids)]
    taken = []
    if base.fps is not None and flags.fps is None and not any(row.fps or row.frames for row in stated):
        taken.append(f"{base.fps:g} frames per second")
    if base.row_stride is not None and flags.stride is None and not any(row.feature_stride for row in stated):
        taken.append(f"{base.row_stride:g} video frames between rows")
    return f"{' and '.join(taken)}, as in the training of {options.checkpoint}" if taken else None


def _read_annotations_and_scores(
    options: InferOptions, config: Config, archive: FeatureArchive
) -> tuple[dict[str, VideoAnnotation], ClassScores | None]:
    """Read the files of --ground-truth and --labels. InputError: a file has none of the videos."""
    strip_prefix = config.data.strip_prefix
    truth = read_annotations(options.ground_truth, strip_prefix=strip_prefix) if options.ground_truth else {}
    class_scores = read_class_scores(options.labels, strip_prefix=strip_prefix) if options.labels else None
    for path, known in ((options.ground_truth, truth), (options.labels, class_scores.videos if class_scores else ())):
        if path and not set(archive.ids).intersection(known):
            raise InputError(
                f"{path} has {count(len(known), 'video')}, expected some of the {len(archive.ids)} in "
                f"{options.features}, such as {archive.ids[0]!r}"
            )
    return truth, class_scores


def _load(options: InferOptions, config: Config) -> Model:
    torch.manual_seed(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        weights = options.checkpoint or config
        model = load(weights, device=options.device, precision=options.precision, backend=options.backend)
    for warning in caught:
        print(f"warning: {warning.message}", file=sys.stderr)
    if options.backend == "auto" and (note := native.missing_note()):
        print(f"note: {note}", file=sys.stderr)
    with use_backend(options.backend):
        # An unusable backend is an error now, not after the network has run.
        choose("match_proposals", model.device)
        choose("soft_nms", torch.device("cpu"))
    return model
