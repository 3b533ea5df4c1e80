"""Second-stage networks and inputs of the golden figures, and small random ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from helpers.paths import GOLDEN
from support import seeded_second_stage as seeded

from bcnet_fast.config import FeatureRows, MUSESConfig, PGCNConfig
from bcnet_fast.data.proposal_list import ProposalVideo, read_proposal_list
from bcnet_fast.geometry.proposal_windows import inference_ticks, pooled_rows
from bcnet_fast.networks.range_maxima import proposal_features
from bcnet_fast.networks.reference import SECOND_STAGE

SEED = 101
STAGE2 = GOLDEN / "stage2"
CONFIGS = {"pgcn": PGCNConfig(), "pgcn_anet": PGCNConfig(classes=200), "muses": MUSESConfig()}
THUMOS14_ROWS, ANET_ROWS = FeatureRows(), FeatureRows(rescaled=100)
SMALL_PGCN = PGCNConfig(classes=3, feature_dim=6, hidden=5)
SMALL_MUSES = MUSESConfig(classes=3, feature_dim=6, channels=(5, 7), head_width=4)


def listed(name: str) -> list[ProposalVideo]:
    return read_proposal_list(STAGE2 / f"{name}.txt")


def golden_network(system: str) -> torch.nn.Module:
    """The reference in float64 with the weights of the golden outputs."""
    network = SECOND_STAGE[CONFIGS[system].name](CONFIGS[system])
    network.load_state_dict(seeded.state(STAGE2 / "keys.json", system, SEED))
    return network.double().eval()


def small_network(config: PGCNConfig | MUSESConfig) -> torch.nn.Module:
    """A reference in float64 whose heads give scores of ordinary size."""
    network = SECOND_STAGE[config.name](config).double().eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "_fc.weight" in name:
                parameter.normal_(std=0.5)
    return network


def rows_of(video: ProposalVideo) -> int:
    """T, rows of a video's features in the layout of THUMOS14."""
    return max(1, (video.frames - 64) // 8 + 1)


def pooled(
    video: ProposalVideo, rows: int, layout: FeatureRows = THUMOS14_ROWS, ticks: np.ndarray | None = None, **options
) -> tuple[torch.Tensor, torch.Tensor]:
    """Activity and completeness features of P-GCN, float32. options: of `seeded.features`."""
    name = "signed" if options else video.name
    features = torch.from_numpy(seeded.features(name, rows, SEED, **options))
    if ticks is None:
        ticks = inference_ticks(video.proposals, video.frames)
    return proposal_features(features, torch.from_numpy(pooled_rows(ticks, video.frames, rows, layout)))


def columns(output) -> dict[str, torch.Tensor]:
    """Scores by the names of the golden files."""
    return {"act": output.activity, "comp": output.completeness, "reg_raw": output.regression}


def joined(outputs):
    """Outputs of several videos as one."""
    return replace(outputs[0], **{name: torch.cat([vars(o)[name] for o in outputs]) for name in vars(outputs[0])})
