"""Shares of an archive: every video in exactly one, whatever else is in the archive, and however a scheduler counts."""

from __future__ import annotations

import pytest

from bcnet_fast.data.shard import Shard, parse_shard
from bcnet_fast.errors import InputError

IDS = [f"video_{number:07d}" for number in range(4000)] + ["ü", "\udcff", "", "a/b"]


@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_shards_are_a_partition_of_about_equal_sizes(count):
    found = [[video for video in IDS if video in Shard(index, count)] for index in range(count)]
    assert sorted(video for videos in found for video in videos) == sorted(IDS)
    assert all(abs(len(videos) - len(IDS) / count) < 6 * (len(IDS) / count) ** 0.5 for videos in found)


def test_a_shard_is_the_same_in_every_version_and_on_every_machine():
    assert [video for video in IDS[:12] if video in Shard(1, 3)] == [IDS[number] for number in (1, 9, 10, 11)]


@pytest.mark.parametrize(
    "environment, expected",
    [
        ({"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8"}, Shard(3, 8)),
        ({"SLURM_ARRAY_TASK_ID": "8", "SLURM_ARRAY_TASK_COUNT": "8", "SLURM_ARRAY_TASK_MIN": "1"}, Shard(7, 8)),
        (
            {
                "SLURM_ARRAY_TASK_ID": "6",
                "SLURM_ARRAY_TASK_COUNT": "4",
                "SLURM_ARRAY_TASK_MIN": "0",
                "SLURM_ARRAY_TASK_STEP": "3",
            },
            Shard(2, 4),
        ),
        ({"RANK": "1", "WORLD_SIZE": "2"}, Shard(1, 2)),
        ({"RANK": "1", "WORLD_SIZE": "2", "SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_COUNT": "5"}, Shard(0, 5)),
    ],
)
def test_auto_is_what_the_scheduler_says(environment, expected):
    assert parse_shard("auto", environment) == expected


@pytest.mark.parametrize(
    "environment, message",
    [
        ({}, "expected one pair in the environment"),
        ({"RANK": "0"}, "expected one pair in the environment"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2, WORLD_SIZE=2, expected tasks without gaps"),
        ({"RANK": "one", "WORLD_SIZE": "2"}, "expected whole numbers"),
        # Two tasks of a larger array that are submitted once more.
        (
            {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_MIN": "3"},
            "expected tasks without gaps; state --shard I/N",
        ),
    ],
)
def test_a_scheduler_that_says_something_else_is_refused(environment, message):
    with pytest.raises(InputError, match=message):
        parse_shard("auto", environment)


@pytest.mark.parametrize("text", ["", "1", "2/2", "-1/2", "1/0", "0/0", "a/b", "1/2/3", "1.0/2", "0/2\n"])
def test_other_shards_are_refused(text):
    with pytest.raises(InputError, match="expected I/N with I from 0 to N - 1, or auto"):
        parse_shard(text, {})
