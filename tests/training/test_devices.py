"""Devices of a training: a process is bound to its GPU, and no network is kept after its validation."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
import torch.distributed as dist
from helpers.training import arguments

from bcnet_fast import train
from bcnet_fast.training import run
from bcnet_fast.training.distributed import Processes


@pytest.mark.parametrize(("device", "bound"), [("cuda:1", torch.device("cuda", 1)), ("cpu", None)])
def test_a_process_of_several_is_bound_to_its_gpu(monkeypatch, device, bound):
    """Without it NCCL would guess the GPU from the rank, on a machine of its own choice."""
    joined = {}
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **options: joined.update(options, backend=backend))
    for name, value in {"get_rank": 1, "barrier": None, "destroy_process_group": None}.items():
        monkeypatch.setattr(dist, name, lambda value=value: value)
    with Processes.join(torch.device(device)) as processes:
        assert (processes.rank, processes.count) == (1, 2)
    assert joined["backend"] == ("gloo" if bound is None else "nccl") and joined["device_id"] == bound


def test_a_network_ends_with_its_validation(data, monkeypatch, tmp_path):
    """Its memory, and on a GPU its graphs, must not add to those of the next epoch."""
    engines: list[weakref.ref] = []
    validate = run.validate

    def watched(model, *arguments):
        gc.collect()
        assert all(engine() is None for engine in engines)
        engines.append(weakref.ref(model.run))
        return validate(model, *arguments)

    monkeypatch.setattr(run, "validate", watched)
    assert train.main(arguments(data, tmp_path, model="bmn")) == 0
    gc.collect()
    assert len(engines) == 2 and all(engine() is None for engine in engines)
