"""One of several inference runs that share an archive and write parts into one folder."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time

from ..data.shard import Shard, parse_shard
from ..errors import InputError
from ..profiling import record
from ..results.part_writer import PartWriter
from ..results.parts import Header, fingerprint_of
from ..text import count
from .predict import Failure
from .run import InferOptions, InferReport, Prepared, Run, details_of, prepare, run_settings, version_of
from .running import require_fresh


def infer_shard(options: InferOptions) -> InferReport:
    """Write the proposals of the videos of `options.shard` as parts into the folder `options.output`.

    InputError: a file or option cannot be used. Videos that fail are in the report and in the parts.
    """
    started = time.perf_counter()
    shard = parse_shard(options.shard or "", os.environ)
    if os.path.isfile(options.output):
        raise InputError(f"{options.output} is a file, expected a folder for the parts")
    require_fresh(options.output, resume=options.resume, overwrite=options.overwrite)
    return run_shard(options, prepare(options), shard, started)


def about_run(options: InferOptions, prepared: Prepared) -> Header:
    """What the parts of a run say about it."""
    settings = json.loads(json.dumps(run_settings(options, prepared.config)))  # as read from a part: no tuples
    details = details_of(options, prepared.config)
    return Header(len(prepared.archive.ids), version_of(prepared.config), details, settings, fingerprint_of(settings))


def run_shard(options: InferOptions, prepared: Prepared, shard: Shard, started: float) -> InferReport:
    """`infer_shard` with a network that is loaded. started: when, by `time.perf_counter`."""
    archive, about = prepared.archive, about_run(options, prepared)
    mine = {video: None for video in archive.ids if video in shard}  # in their order
    with contextlib.closing(
        PartWriter(
            options.output,
            shard.index,
            shard.count,
            about,
            lambda video: archive.version(video) if video in mine else None,
            part_format=options.part_format,
            part_videos=options.part_videos,
            resume=options.resume,
            overwrite=options.overwrite,
            retry_failed=options.retry_failed,
        )
    ) as writer:
        videos = [video for video in mine if video not in writer.done and video not in writer.failed]
        if options.resume:
            print(f"resumed: {len(mine) - len(videos)} of {len(mine)} videos of shard {shard} are already done")
            if writer.changed:
                print(
                    f"note: {count(writer.changed, 'video')} with other feature files than before in "
                    f"{options.features}: done again",
                    file=sys.stderr,
                )
        run = Run(options, prepared, writer.add, lambda failure: writer.fail(failure.video, failure.reason))
        for failure in prepared.unusable:
            if failure.video in shard and failure.video not in writer.failed:
                run.fail(failure)
        try:
            with record() if options.profile or options.trace else contextlib.nullcontext() as profile:
                run.predict(archive.reading_order(videos))
        except (KeyboardInterrupt, BrokenPipeError):
            writer.commit()
            print(
                f"{options.output} has {count(len(writer.done), 'finished video')} of shard {shard}; "
                "continue with --resume",
                file=sys.stderr,
            )
            raise
        writer.commit()
    seconds = time.perf_counter() - started
    if options.trace and profile is not None:
        profile.write_trace(options.trace)
    return InferReport(
        f"{options.output}, shard {shard}",
        len(writer.done),
        run.windows,
        sum(writer.done.values()),
        seconds,
        about.details,
        tuple(Failure(*failed) for failed in sorted(writer.failed.items()))
        + tuple(failure for failure in prepared.unusable if failure.video in shard),
        profile,
        prepared.pictures.seconds,
    )
