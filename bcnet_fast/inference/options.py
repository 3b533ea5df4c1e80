"""Options of an inference run."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..data.source import ReadLimits
from ..data.timing import TimeOptions
from ..video.extraction import ReadOptions
from ..video.run import NetworkOptions


@dataclass(frozen=True)
class InferOptions:
    """Options of `infer`. A field has the meaning of the flag of `python -m bcnet_fast.infer` with the same name."""

    features: str  # or the names of the videos
    output: str
    # Videos instead of features, and how features are made of them.
    videos: tuple[str, ...] = ()
    network: NetworkOptions = field(default_factory=NetworkOptions)
    read: ReadOptions = field(default_factory=ReadOptions)
    keep_features: str | None = None
    subset: str | None = None  # of the videos in the file of --times or --ground-truth
    # A checkpoint, or a preset with random weights.
    checkpoint: str | None = None
    model: str | None = None
    preset: str | None = None
    feature_dim: int | None = None
    precision: str = "fp32"
    device: str = "auto"
    backend: str = "auto"
    protocol: str = "default"
    time: TimeOptions = field(default_factory=TimeOptions)
    limits: ReadLimits = field(default_factory=ReadLimits)
    # Class scores turn proposals into detections.
    labels: str | None = None
    fusion: str = "product"
    top_k: int = 1
    # Checkpoints of P-GCN or MUSES-Net turn them into detections too, by `both_stages.infer_and_refine`.
    refine: tuple[str, ...] | None = None
    # A page of the results, by `page.make_page`; a folder of boundary probabilities.
    page: str | None = None
    boundaries: str | None = None
    # A folder of pictures, or the file of one; a folder of subtitles.
    plot: str | None = None
    plot_format: str | None = None
    srt: str | None = None
    best: int | None = None
    ground_truth: str | None = None
    batch_size: int = 8
    workers: int = 0
    profile: bool = False
    trace: str | None = None
    resume: bool = False
    overwrite: bool = False
    # One of several runs that share the archive: `inference.shards.infer_shard`.
    shard: str | None = None
    part_format: str = "jsonl"
    part_videos: int = 1000
    retry_failed: bool = False
    # All shards on a Ray cluster of this address, or "local": `inference.ray.infer_ray`, with `workers` processes.
    ray: str | None = None
    cpus_per_worker: int = 1
    gpus_per_worker: float = 0.0
