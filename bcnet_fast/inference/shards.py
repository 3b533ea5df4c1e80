"""One of several inference runs that share an archive and write parts into one folder."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np

from ..data.shard import Shard, parse_shard
from ..errors import InputError
from ..profiling import Profile, record
from ..results.part_writer import PartWriter
from ..results.parts import Header, fingerprint_of
from ..text import count
from .options import InferOptions
from .predict import Failure
from .run import InferReport, Inputs, Prepared, Run, prepare
from .running import require_fresh
from .settings import details_of, run_settings, version_of


def infer_shard(options: InferOptions) -> InferReport:
    """Write the proposals of the videos of `options.shard` as parts into the folder `options.output`.

    InputError: a file or option cannot be used. Videos that fail are in the report and in the parts.
    """
    started = time.perf_counter()
    shard = parse_shard(options.shard or "", os.environ)
    require_folder(options)
    prepared = prepare(options)
    with contextlib.closing(ShardRun(options, prepared, shard, about_run(options, prepared))) as run:
        if options.resume:
            run.tell_what_is_done()
        try:
            with record() if options.profile or options.trace else contextlib.nullcontext() as profile:
                run.predict(run.left)
        except (KeyboardInterrupt, BrokenPipeError):
            run.writer.commit()
            print(
                f"{options.output} has {count(len(run.writer.done), 'finished video')} of shard {shard}; "
                "continue with --resume",
                file=sys.stderr,
            )
            raise
        run.writer.commit()
    if options.trace and profile is not None:
        profile.write_trace(options.trace)
    return run.report(started, profile)


def require_folder(options: InferOptions) -> None:
    """InputError: the output is no place for parts, or two flags say what to do with it."""
    if os.path.isfile(options.output):
        raise InputError(f"{options.output} is a file, expected a folder for the parts")
    require_fresh(options.output, resume=options.resume, overwrite=options.overwrite)


def about_run(options: InferOptions, inputs: Inputs) -> Header:
    """Facts about a run, for the headers of its parts."""
    settings = json.loads(json.dumps(run_settings(options, inputs.config)))  # as read from a part: no tuples
    details = details_of(options, inputs.config)
    return Header(len(inputs.archive.ids), version_of(inputs.config), details, settings, fingerprint_of(settings))


class ShardRun:
    """The videos of a shard, and the writer of their parts, which holds the shard until `close`.

    each: called after each video; an exception from it ends the run.

    left: videos that need work, in their order.

    InputError: as in `PartWriter`.
    """

    def __init__(
        self,
        options: InferOptions,
        prepared: Prepared,
        shard: Shard,
        about: Header,
        each: Callable[[], None] = lambda: None,
    ) -> None:
        self.options, self.prepared, self.shard, self.about, self._each = options, prepared, shard, about, each
        archive = prepared.archive
        self._mine = {video: None for video in archive.ids if video in shard}  # in their order
        self.writer = PartWriter(
            options.output,
            shard.index,
            shard.count,
            about,
            lambda video: archive.version(video) if video in self._mine else None,
            part_format=options.part_format,
            part_videos=options.part_videos,
            resume=options.resume,
            overwrite=options.overwrite,
            retry_failed=options.retry_failed,
        )
        self.left = [video for video in self._mine if video not in self.writer.done and video not in self.writer.failed]
        self._run = Run(options, prepared, self._add, self._fail)

    def tell_what_is_done(self) -> None:
        """Print how many videos are done, and how many must be done again."""
        total = len(self._mine)
        print(f"resumed: {total - len(self.left)} of {total} videos of shard {self.shard} are already done")
        if self.writer.changed:
            changed = count(self.writer.changed, "video")
            features = self.options.features
            print(f"note: {changed} with other feature files than before in {features}: done again", file=sys.stderr)

    def predict(self, videos: Sequence[str]) -> None:
        """Predict `videos`. Call `writer.commit` afterwards, also after an interruption."""
        for failure in self._unusable():
            if failure.video not in self.writer.failed:
                self._fail(failure)
        self._run.predict(self.prepared.archive.reading_order(videos))

    def report(self, started: float, profile: Profile | None = None) -> InferReport:
        """Report of the whole shard, earlier runs included. started: start time by `time.perf_counter`."""
        failed = [Failure(*failed) for failed in sorted(self.writer.failed.items())]
        return InferReport(
            f"{self.options.output}, shard {self.shard}",
            len(self.writer.done),
            self._run.windows,
            sum(self.writer.done.values()),
            time.perf_counter() - started,
            self.about.details,
            (*failed, *self._unusable()),
            profile,
            self.prepared.pictures.seconds,
        )

    def close(self) -> None:
        """Release the shard for other runs. Uncommitted results are lost."""
        self.writer.close()

    def _unusable(self) -> list[Failure]:
        return [failure for failure in self.prepared.unusable if failure.video in self.shard]

    def _add(
        self, video: str, windows: int, segments: np.ndarray, scores: np.ndarray, labels: np.ndarray | None
    ) -> None:
        self.writer.add(video, windows, segments, scores, labels)
        self._each()

    def _fail(self, failure: Failure) -> None:
        self.writer.fail(failure.video, failure.reason)
        self._each()
