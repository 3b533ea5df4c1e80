"""The presets: sizes, windows, thresholds and training of each system on each kind of data."""

from __future__ import annotations

from dataclasses import replace

from .config import (
    AnchorProposalConfig,
    BCNetConfig,
    BMNConfig,
    Config,
    DataConfig,
    DetectionConfig,
    FeatureRows,
    GTADConfig,
    MapProposalConfig,
    MUSESConfig,
    PGCNConfig,
    SamplePools,
    SecondStageConfig,
    SecondStageTrainConfig,
    TrainConfig,
)

_THUMOS14, _ACTIVITYNET13 = DataConfig(), DataConfig(rescale=True, window_stride=100, stride=16.0, strip_prefix=True)


_SMALL_DATA = DataConfig(window_stride=48, stride=8.0)


_SMALL_TRAINING = TrainConfig(
    epochs=12, batch_size=16, shift_windows=True, learning_rate=2e-3, decay_every=9, weight_decay=0.0
)


# Networks for a few dozen videos or a CPU, at the sizes that fit generated videos. For a user's own features, --fit
# replaces width, window and longest proposal.
_SMALL = {
    "bcnet": Config(
        "small",
        BCNetConfig(
            feature_dim=32,
            window=96,
            max_duration=32,
            base_channels=64,
            width=64,
            heads=2,
            head_dim=32,
            feedforward=128,
            boundary_layers=3,
            clip_channels=8,
            bins=16,
        ),
        _SMALL_DATA,
        AnchorProposalConfig(top=200, max_snippets=None),
        _SMALL_TRAINING,
    ),
    "bmn": Config(
        "small",
        BMNConfig(
            feature_dim=32,
            window=96,
            max_duration=32,
            base_channels=64,
            sampled_channels=64,
            map_channels=32,
            bins=16,
            map_layout="duration_start",
        ),
        _SMALL_DATA,
        MapProposalConfig(top=200, max_snippets=None),
        _SMALL_TRAINING,
    ),
    "gtad": Config(
        "small",
        GTADConfig(
            feature_dim=32,
            window=96,
            max_duration=32,
            base_channels=64,
            block_channels=32,
            block_groups=8,
            sampled_channels=64,
            map_channels=32,
            inner_bins=8,
            context_bins=8,
        ),
        _SMALL_DATA,
        # Unlike the presets of its release, this one multiplies by the probabilities of start and end, as the other two
        # systems do: a small map alone ranks worse.
        MapProposalConfig(top=200, max_snippets=None),
        _SMALL_TRAINING,
    ),
}


# Keys: system, then kind of data.
PRESETS: dict[str, dict[str, Config]] = {
    "bcnet": {
        "thumos14": Config("thumos14", BCNetConfig(), _THUMOS14, AnchorProposalConfig()),
        # The paper gives T = 100, 16 frames a snippet and C = 400 (section 4.2). The public release has no ActivityNet
        # code: the Soft-NMS settings are those of BMN, which the paper follows, and anchors reach the whole video.
        "activitynet13": Config(
            "activitynet13",
            BCNetConfig(feature_dim=400, window=100, max_duration=100),
            _ACTIVITYNET13,
            AnchorProposalConfig(sigma=0.4, iou_threshold=(0.5, 0.9), window_top=100, top=100, max_snippets=None),
        ),
        "small": _SMALL["bcnet"],
        "synthetic": replace(_SMALL["bcnet"], preset="synthetic"),
    },
    "bmn": {
        # The public release has no THUMOS14 code: the map and the training are those of OpenTAD, the map also that of
        # mmaction2, with G-TAD's window.
        "thumos14": Config(
            "thumos14",
            BMNConfig(feature_dim=2048, window=256, max_duration=64, map_layout="duration_start"),
            _THUMOS14,
            MapProposalConfig(window_top=200),
            TrainConfig(epochs=8, decay_every=5),
        ),
        # The release counts an epoch before it begins: its 7th of 9, the first after every 7, is decayed already.
        "activitynet13": Config(
            "activitynet13",
            BMNConfig(),
            _ACTIVITYNET13,
            MapProposalConfig(sigma=0.4, iou_threshold=(0.5, 0.9), window_top=100, top=100, max_snippets=None),
            TrainConfig(epochs=9, learning_rate=1e-3, decay_every=6),
        ),
        "small": _SMALL["bmn"],
        "synthetic": replace(_SMALL["bmn"], preset="synthetic"),
    },
    "gtad": {
        "thumos14": Config(
            "thumos14",
            GTADConfig(),
            _THUMOS14,
            MapProposalConfig(window_top=200, top=200, boundary_scores=False),
            TrainConfig(batch_size=8, learning_rate=4e-5, decay_every=5, gradient_clip=1.0),
        ),
        # The branch `anet` of the public release.
        "activitynet13": Config(
            "activitynet13",
            GTADConfig(feature_dim=400, window=100, max_duration=100, inner_bins=32, context_bins=4, map_kernel=1),
            _ACTIVITYNET13,
            MapProposalConfig(
                sigma=0.8, window_top=100, top=100, max_snippets=None, boundary_peaks=True, boundary_scores=False
            ),
            TrainConfig(learning_rate=4e-3, decay_every=5),
        ),
        "small": _SMALL["gtad"],
        "synthetic": replace(_SMALL["gtad"], preset="synthetic"),
    },
}


PRESET_NAMES = tuple(PRESETS["bcnet"])


FITTED = "small"  # the preset that takes its sizes from the data


DATA_SETS = ("thumos14", "activitynet13")  # the public ones, of which there are released weights and metrics


_SMALL_SECOND_STAGE = SecondStageTrainConfig(epochs=10, batch_size=16, decay_at=(6, 8, 9), weight_decay=0.0)


# Second-stage networks, by system, then by data set, as in their public releases; small is for your own features.
SECOND_STAGE_PRESETS: dict[str, dict[str, SecondStageConfig]] = {
    "pgcn": {
        "thumos14": SecondStageConfig("thumos14", PGCNConfig()),
        "activitynet13": SecondStageConfig(
            "activitynet13",
            PGCNConfig(classes=200),
            FeatureRows(rescaled=100),
            SamplePools(
                incomplete_iou=0.6, incomplete_overlap=0.0, background_iou=0.1, background_coverage=0.0, passes=5
            ),
            DetectionConfig(top=100, nms_threshold=0.4, fused_nms_threshold=0.4),
        ),
        "small": SecondStageConfig(
            "small",
            PGCNConfig(feature_dim=32, hidden=128, graph_dropout=0.3, activity_dropout=0.3),
            FeatureRows(clip=8),
            train=_SMALL_SECOND_STAGE,
        ),
    },
    "muses": {
        "thumos14": SecondStageConfig(
            "thumos14",
            MUSESConfig(),
            detections=DetectionConfig(nms_threshold=0.4, fused_nms_threshold=0.4),
            train=SecondStageTrainConfig(epochs=20, single_videos=True),
        ),
        "muses": SecondStageConfig(
            "muses",
            MUSESConfig(classes=25),
            pools=SamplePools(passes=1),
            detections=DetectionConfig(top=500, nms_threshold=0.4, fused_nms_threshold=0.4),
            train=SecondStageTrainConfig(epochs=30, decay_at=(20, 30, 30)),
        ),
        "small": SecondStageConfig(
            "small",
            MUSESConfig(feature_dim=32, channels=(64, 64), head_width=64, activity_dropout=0.3),
            FeatureRows(clip=8),
            detections=DetectionConfig(nms_threshold=0.4, fused_nms_threshold=0.4),
            train=_SMALL_SECOND_STAGE,
        ),
    },
}
