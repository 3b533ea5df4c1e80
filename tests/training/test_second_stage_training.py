"""Samples, targets, losses and gradients of second-stage networks against the public code."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from helpers.second_stage import (
    SEED,
    SMALL_MUSES,
    SMALL_PGCN,
    STAGE2,
    golden_network,
    joined,
    listed,
    pooled,
    rows_of,
)
from support import seeded, seeded_second_stage

from bcnet_fast.config import SamplePools
from bcnet_fast.data.proposal_list import read_proposal_list
from bcnet_fast.geometry.proposal_graph import neighbour_slots, pairwise_distance, pairwise_iou, video_generator
from bcnet_fast.geometry.proposal_windows import regions, training_ticks
from bcnet_fast.networks.outputs import SecondStageOutput
from bcnet_fast.networks.reference import SECOND_STAGE
from bcnet_fast.training.second_stage_losses import second_stage_loss
from bcnet_fast.training.second_stage_samples import (
    draw_samples,
    normalised_targets,
    pool_rows,
    regression_stats,
    regression_targets,
    video_pool,
)

THUMOS14 = SamplePools()
RULES = {"thumos": ("thumos_train", THUMOS14), "anet": ("anet", SamplePools(0.7, 0.6, 0.0, 0.1, 0.0, 5))}
TERMS = ("total", "activity", "completeness", "regression")


def trained_on(name: str):
    return [video for video in listed(name) if len(video.instances)]


@pytest.mark.parametrize("data_set", RULES)
def test_pools_and_targets_are_the_golden_ones(data_set):
    name, rules = RULES[data_set]
    known, arrays = json.loads((STAGE2 / "pgcn_pools.json").read_text())[data_set], np.load(STAGE2 / "pgcn_train.npz")
    videos = trained_on(name)
    stats = regression_stats(videos, rules)
    np.testing.assert_allclose([stats.mean, stats.std], arrays[f"{data_set}_reg_stats"], rtol=0, atol=1e-14)
    for video, pools in zip(videos, known["videos"], strict=True):
        pool = video_pool(video, rules)
        rows = np.column_stack([pool.labels, pool.segments]).tolist()
        assert rows == pools["foreground"] + pools["incomplete"] + pools["background"]
        assert pool.counts == tuple(len(pools[kind]) for kind in ("foreground", "incomplete", "background"))
        ticks = training_ticks(pool.segments, video.frames)
        assert np.array_equal(ticks, arrays[f"{data_set}_extended_{video.name}"])
        targets = regression_targets(pool.segments[: pool.counts[0]], video.instances)
        np.testing.assert_allclose(targets, arrays[f"{data_set}_targets_{video.name}"], rtol=0, atol=1e-14)
        expected = arrays[f"{data_set}_targets_norm_{video.name}"]
        np.testing.assert_allclose((targets - stats.mean) / stats.std, expected, rtol=0, atol=1e-12)


def test_a_proposal_at_a_threshold_belongs_to_no_pool():
    known = json.loads((STAGE2 / "parse_pgcn.json").read_text())["quirks_pools"]
    for video, pools in zip(read_proposal_list(STAGE2 / "quirks.txt"), known, strict=True):
        assert [rows.tolist() for rows in pool_rows(video, THUMOS14)] == list(pools.values())


def test_a_video_without_instances_is_refused():
    video = listed("thumos_test")[12]
    with pytest.raises(ValueError, match="video_test_9000013 has no instance"):
        video_pool(video, THUMOS14)
    with pytest.raises(ValueError, match=r"no proposal has an IoU above 0.7, expected one at least"):
        regression_stats([video], THUMOS14)


@pytest.mark.parametrize("system", ["pgcn", "muses"])
def test_samples_are_drawn_as_in_the_public_code(system):
    arrays, generator = np.load(STAGE2 / f"{system}_train.npz"), np.random.RandomState(777)
    videos = trained_on("thumos_train")
    stats = regression_stats(videos, THUMOS14)
    for number, video in enumerate(videos):
        pool = video_pool(video, THUMOS14)
        samples = draw_samples(pool, generator, neighbour_slots(pool.segments) if system == "pgcn" else None)
        assert np.array_equal(np.stack([samples.kinds, samples.labels], 1), arrays[f"sample_train{number}"])
        targets = normalised_targets(samples, pool, video.instances, stats)
        np.testing.assert_allclose(targets, arrays[f"sample_reg_train{number}"], rtol=0, atol=2e-7)  # float32
        if system == "pgcn":
            assert np.array_equal(samples.trees, arrays[f"nodes777_train{number}"])
        else:
            assert np.array_equal(samples.index, arrays[f"sample_index_train{number}"])


def test_the_graph_of_a_pool_is_the_golden_one():
    arrays, pool = np.load(STAGE2 / "pgcn_train.npz"), video_pool(trained_on("thumos_train")[0], THUMOS14)
    assert np.array_equal(neighbour_slots(pool.segments), arrays["thumos_cand_train0"])
    assert np.array_equal(pairwise_iou(pool.segments, pool.segments)[:4], arrays["thumos_iou_train0"])
    assert np.array_equal(pairwise_distance(pool.segments, pool.segments)[:4], arrays["thumos_dist_train0"])


def test_samples_follow_the_generator_of_the_video():
    pool = video_pool(trained_on("thumos_train")[0], THUMOS14)
    first, again = (draw_samples(pool, video_generator(1, "v")) for _ in range(2))
    assert np.array_equal(first.index, again.index)
    kinds = np.searchsorted(np.cumsum(pool.counts), first.index, side="right")
    assert kinds.tolist() == first.kinds.tolist() == [0, 1, 1, 1, 1, 1, 1, 2]


@pytest.mark.parametrize(
    ("case", "videos", "classes"), [("thumos", 4, 20), ("one_video", 1, 20), ("anet", 2, 200), ("fallback", 3, 20)]
)
def test_losses_and_their_gradients_are_the_golden_ones(case, videos, classes):
    known = np.load(STAGE2 / "losses.npz")
    drawn = [torch.from_numpy(array) for array in seeded_second_stage.loss_inputs(case, videos, classes, SEED)]
    scores, (labels, kinds, targets) = [x.requires_grad_() for x in drawn[:3]], drawn[3:]
    losses = second_stage_loss(SecondStageOutput(*scores), kinds, labels, targets)
    losses["total"].backward()
    np.testing.assert_allclose([losses[term].item() for term in TERMS], known[f"{case}_loss"], rtol=0, atol=1e-12)
    for tensor, name in zip(scores, ("act", "comp", "reg"), strict=True):
        np.testing.assert_allclose(tensor.grad.numpy(), known[f"{case}_grad_{name}"], rtol=0, atol=1e-12)


def test_losses_are_finite_without_foreground_and_ignore_label_0():
    output = SecondStageOutput(torch.randn(8, 4), torch.randn(8, 3), torch.randn(8, 3, 2))
    kinds, labels = torch.tensor([1] * 8), torch.tensor([0, 0, 0, 0, 0, 0, 0, 0])
    losses = second_stage_loss(output, kinds, labels, torch.zeros(8, 2))
    assert [losses[term].item() for term in TERMS] == [0.0] * 4


def selected(output: SecondStageOutput, kinds: torch.Tensor, labels: torch.Tensor, targets: torch.Tensor):
    """The outputs of the public code in training."""
    places = torch.arange(len(kinds)) % 8
    active, foreground = kinds != 1, kinds == 0
    return {
        "act": output.activity[active], "act_label": labels[active], "act_type": kinds[active],
        "comp": output.completeness[places < 7], "comp_label": labels[places < 7],
        "reg": output.regression[foreground], "reg_label": labels[foreground], "reg_target": targets[foreground],
    }  # fmt: skip


def check_training(network, outputs, samples, targets, known, prefix: str, expected: np.ndarray) -> torch.Tensor:
    output = joined(outputs)
    kinds, labels = (
        torch.from_numpy(np.concatenate([getattr(s, name) for s in samples])) for name in ("kinds", "labels")
    )
    target = torch.from_numpy(np.concatenate(targets).astype(np.float32)).double()
    for name, found in selected(output, kinds, labels, target).items():
        np.testing.assert_allclose(found.detach().numpy(), known[prefix + name], rtol=0, atol=1e-9, err_msg=name)
    losses = second_stage_loss(output, kinds, labels, target)
    np.testing.assert_allclose([losses[term].item() for term in TERMS], expected, rtol=0, atol=1e-9)
    return losses["total"]


def check_gradients(network: torch.nn.Module, system: str) -> None:
    known = json.loads((STAGE2 / f"{system}_train_grads.json").read_text())
    for name, parameter in network.named_parameters():
        gradient = parameter.grad.numpy()
        probe = seeded.generator(SEED, f"gradprobe/{name}").standard_normal(gradient.shape)
        found = gradient.sum(), np.linalg.norm(gradient), (gradient * probe).sum()
        np.testing.assert_allclose(found, known[name], rtol=1e-9, atol=1e-9, err_msg=name)


def without_dropout(network: torch.nn.Module) -> torch.nn.Module:
    network.train()
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return network


def test_a_step_of_pgcn_has_the_golden_losses_and_gradients():
    network, generator = without_dropout(golden_network("pgcn")), np.random.RandomState(777)
    videos, outputs, samples, targets = trained_on("thumos_train"), [], [], []
    stats = regression_stats(videos, THUMOS14)
    for video in videos[:2]:
        pool = video_pool(video, THUMOS14)
        samples.append(draw_samples(pool, generator, neighbour_slots(pool.segments)))
        features = pooled(video, rows_of(video), ticks=training_ticks(pool.segments, video.frames))
        outputs.append(network(*(x.double() for x in features), torch.from_numpy(samples[-1].trees)))
        targets.append(normalised_targets(samples[-1], pool, video.instances, stats))
    known = np.load(STAGE2 / "pgcn_forward.npz")
    check_training(network, outputs, samples, targets, known, "train_", known["train_loss"]).backward()
    check_gradients(network, "pgcn")


@pytest.mark.slow  # of the released size
def test_two_steps_of_muses_have_the_golden_losses_and_gradients():
    network, generator = without_dropout(golden_network("muses")), np.random.RandomState(777)
    videos, known = trained_on("thumos_train"), np.load(STAGE2 / "muses_train.npz")
    stats = regression_stats(videos, THUMOS14)
    np.testing.assert_allclose([stats.mean, stats.std], known["reg_stats"], rtol=0, atol=1e-14)
    for number, video in enumerate(videos[:2]):
        pool = video_pool(video, THUMOS14)
        samples = draw_samples(pool, generator)
        rois = regions(training_ticks(pool.segments[samples.index], video.frames))
        features = torch.from_numpy(seeded_second_stage.features(video.name, rows_of(video), SEED)).double().T
        output = network(features, torch.from_numpy(rois))
        targets = [normalised_targets(samples, pool, video.instances, stats)]
        expected = known["train_loss"][number]
        check_training(network, [output], [samples], targets, known, f"train{number}_", expected).backward()
    check_gradients(network, "muses")


def test_dropout_lies_where_the_public_code_has_it():
    graph = {"Act_GCN.dropout": 0.7, "Comp_GCN.dropout": 0.7, "dropout": 0.8}
    for config, expected in ((SMALL_PGCN, graph), (SMALL_MUSES, {"roi_head.dropout": 0.8})):
        modules = SECOND_STAGE[config.name](config).named_modules()
        assert {name: m.p for name, m in modules if isinstance(m, torch.nn.Dropout)} == expected
