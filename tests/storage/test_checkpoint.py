"""Checkpoints: written content is read back, and every bad file gives one clear line."""

from __future__ import annotations

import json
import os

import pytest
import torch
from helpers.networks import SMALL, SWITCHES, ablated
from safetensors import SafetensorError
from safetensors.torch import save_file

import bcnet_fast
from bcnet_fast.config import AnchorProposalConfig, Config
from bcnet_fast.errors import BackendError, InputError
from bcnet_fast.networks import releases
from bcnet_fast.networks.outputs import BCNetOutput
from bcnet_fast.networks.reference.bcnet import BCNet
from bcnet_fast.presets import PRESETS
from bcnet_fast.storage import checkpoint
from bcnet_fast.storage.checkpoint import StoredWeights, read_config, save_checkpoint

CONFIG = Config("small", model=SMALL, proposals=AnchorProposalConfig(max_snippets=None, iou_threshold=(0.5, 0.9)))


@pytest.fixture
def saved(tmp_path):
    network = BCNet(SMALL)
    path = tmp_path / "small.safetensors"
    save_checkpoint(path, network.state_dict(), CONFIG)
    return path, network


def test_a_checkpoint_brings_back_weights_and_configuration(saved):
    path, network = saved
    state = StoredWeights(path, network)
    assert read_config(path) == CONFIG
    assert state.keys() == network.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in network.state_dict().items())
    for name, tensor in network.state_dict().items():
        parts = list(state.rows(name, 3))
        assert {len(part) for part in parts[:-1]} <= {3}
        assert torch.equal(torch.cat(parts), tensor)
    features = torch.randn(1, 10, 24)
    with torch.no_grad():
        assert torch.equal(
            network.eval()(features).background,
            bcnet_fast.load(path, device="cpu", backend="reference")(features).background,
        )


@pytest.mark.parametrize("model", ablated(SMALL).values(), ids=ablated(SMALL))
def test_a_checkpoint_says_what_its_network_is_without(tmp_path, model):
    network, config, path = BCNet(model).eval(), Config("small", model=model), tmp_path / "small.safetensors"
    save_checkpoint(path, network.state_dict(), config)
    assert read_config(path) == config
    features = torch.randn(2, 10, 24)
    loaded = bcnet_fast.load(path, device="cpu", backend="reference")
    with torch.no_grad():
        expected, found = (BCNetOutput.cat([run(part) for part in features.split(1)]) for run in (network, loaded))
    assert found.columns().keys() == expected.columns().keys()
    assert all(torch.equal(found.columns()[name], scores) for name, scores in expected.columns().items())


def test_a_checkpoint_from_before_the_switches_is_a_whole_network(tmp_path, saved):
    values = CONFIG.to_dict()
    for switch in SWITCHES:
        del values["model"][switch]
    path = tmp_path / "old.safetensors"
    save_file(saved[1].state_dict(), path, metadata={checkpoint.FORMAT: json.dumps(values)})
    assert all(getattr(read_config(path).model, switch) is True for switch in SWITCHES)
    features = torch.randn(1, 10, 24)
    old, new = (bcnet_fast.load(one, device="cpu")(features) for one in (path, saved[0]))
    assert all(torch.equal(old.columns()[name], scores) for name, scores in new.columns().items())


def test_a_full_disk_is_one_clear_line_and_leaves_nothing(tmp_path, monkeypatch):
    def save_nothing(tensors, path, metadata):
        path.write_bytes(b"part")
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", save_nothing)
    with pytest.raises(InputError, match=r"net\.safetensors cannot be written: No space left on device"):
        save_checkpoint(tmp_path / "net.safetensors", {"w": torch.zeros(1)}, CONFIG)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_has_the_permissions_of_any_new_file(tmp_path):
    before = os.umask(0o027)
    try:
        save_checkpoint(tmp_path / "net.safetensors", {"w": torch.zeros(1)}, CONFIG)
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert (tmp_path / "net.safetensors").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("name", ["thumos14", "activitynet13"])
@pytest.mark.parametrize("system", PRESETS)
def test_every_preset_survives_json(system, name):
    config = PRESETS[system][name]
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"widht": 3}}, "x: there is no setting model.widht; did you mean model.width"),
        ({"model": {"width": "400"}}, "x: model.width is '400', expected a whole number"),
        ({"modle": {}}, "x has the keys .*, expected preset, model, data, proposals"),
        ({"model": None}, "x: model is None, expected an object with settings"),
        ({"data": [1]}, r"x: data is \[1\], expected an object with settings"),
        ({"model": {"window": 0}}, "x: model.window is 0, expected a whole number from 1 to 4096"),
        ({"model": {"heads": -3}}, "x: model.heads is -3, expected a whole number from 1"),
        ({"model": {"width": 10**400}}, "x: model.width is 10.*, expected a whole number from 1"),
        ({"model": {"dropout": 1.0}}, "x: model.dropout is 1.0, expected a share from 0 to below 1"),
        ({"model": {"frame_level": 1}}, "x: model.frame_level is 1, expected true or false"),
        ({"model": {"self_attention": "false"}}, "x: model.self_attention is 'false', expected true or false"),
        ({"model": {"difference_attention": None}}, "x: model.difference_attention is None, expected true or false"),
        ({"model": {"name": "bmn", "frame_level": False}}, "x: there is no setting model.frame_level; the settings"),
        ({"data": {"offset": float("nan")}}, "x: data.offset is nan, expected a finite number"),
        ({"data": {"offset": 10**400}}, "x: data.offset is 10*, expected a number"),
        ({"train": {"decay_factor": 1e30}}, "x: train.decay_factor is 1e\\+30, expected a number above 0, up to 1"),
        ({"data": {"stride": 0}}, "x: data.stride is 0, expected a number above 0"),
        ({"proposals": {"iou_threshold": [0.5]}}, r"x: proposals.iou_threshold is \[0.5\], expected 2 numbers"),
        ({"proposals": {"iou_threshold": ["a", 1]}}, "x: proposals.iou_threshold is .*, expected a number"),
    ],
)
def test_unknown_or_wrong_settings_are_named(change, message):
    with pytest.raises(InputError, match=message):
        Config.from_dict({"preset": "own", **change}, "x")


def damaged(tmp_path, saved):
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(saved[0].read_bytes()[:-50])
    return path, "damaged"


def empty(tmp_path, saved):
    path = tmp_path / "empty.safetensors"
    path.touch()
    return path, "damaged"


def foreign(tmp_path, saved):
    path = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    return path, "has no configuration in its metadata"


def with_a_number(tmp_path, saved):
    path = tmp_path / "number.safetensors"
    weights = saved[1].state_dict() | {"num_batches_tracked": torch.tensor(3)}
    save_file(weights, path, metadata={checkpoint.FORMAT: json.dumps(CONFIG.to_dict())})
    return path, "unknown: num_batches_tracked"


def without_settings(tmp_path, saved):
    path = tmp_path / "null.safetensors"
    save_file({"weight": torch.zeros(2)}, path, metadata={"bcnet_fast": "null"})
    return path, "is None, expected an object with settings"


def nested(tmp_path, saved):
    path = tmp_path / "nested.safetensors"
    save_file({"weight": torch.zeros(2)}, path, metadata={"bcnet_fast": "[" * 200_000 + "]" * 200_000})
    return path, "JSON is nested too deeply, expected a configuration in the metadata"


def named_by_a_list(tmp_path, saved):
    path = tmp_path / "list.safetensors"
    save_file({"weight": torch.zeros(2)}, path, metadata={"bcnet_fast": '{"preset": "x", "model": {"name": ["bmn"]}}'})
    return path, r"model.name is \['bmn'\], expected bcnet, bmn or gtad"


def absent(tmp_path, saved):
    return tmp_path / "absent.safetensors", "is neither a file nor a preset"


def released(tmp_path, saved):
    path = tmp_path / "bpm.pth.tar"
    path.touch()
    return path, "has suffix .*; see python -m bcnet_fast.convert"


def unfitting(tmp_path, saved):
    path = tmp_path / "unfitting.safetensors"
    state = dict(saved[1].state_dict())
    del state["bpm.fc_cls.0.weight"]
    state["bpm.query.weight"] = torch.zeros(3, 3)
    state["more"] = torch.full((2,), torch.nan)
    save_checkpoint(path, state, CONFIG)
    return path, (
        r"missing: bpm.fc_cls.0.weight; unknown: more; misshaped: bpm.query.weight \(has \[3, 3\], "
        r"expected \[24, 12\]\); not finite: more"
    )


@pytest.mark.parametrize(
    "make",
    [damaged, empty, foreign, with_a_number, without_settings, nested, named_by_a_list, absent, released, unfitting],
)
def test_a_bad_checkpoint_is_one_clear_line(tmp_path, saved, make):
    path, message = make(tmp_path, saved)
    with pytest.raises(InputError, match=message) as error:
        bcnet_fast.load(path, device="cpu")
    assert path.name in str(error.value) and "\n" not in str(error.value)


def test_weights_of_another_system_than_the_configuration_s_are_refused(tmp_path, saved):
    path = tmp_path / "other.safetensors"
    save_checkpoint(path, saved[1].state_dict(), PRESETS["bmn"]["thumos14"])
    with pytest.raises(InputError, match=r"other\.safetensors: weights do not fit the network; missing: x_1d_b\.0"):
        bcnet_fast.load(path, device="cpu")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"precision": "int3"}, InputError, "precision is 'int3', expected fp32, "),
        ({"backend": "magic"}, BackendError, "backend is 'magic', expected auto, "),
        ({"device": "toaster"}, InputError, "--device is .toaster., expected auto, cpu or cuda"),
    ],
)
def test_unusable_arguments_are_named(saved, arguments, error, message):
    with pytest.raises(error, match=message):
        bcnet_fast.load(saved[0], **arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_without_a_device_is_refused(saved):
    with pytest.raises(InputError, match=r"--device is 'cuda', but torch .* sees 0 CUDA devices here"):
        bcnet_fast.load(saved[0], device="cuda")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_stays_close_to_float32(saved, precision):
    features = torch.randn(1, 10, 24)
    exact = bcnet_fast.load(saved[0], device="cpu")(features)
    low = bcnet_fast.load(saved[0], device="cpu", precision=precision)(features)
    assert low.start.dtype == torch.float32
    torch.testing.assert_close(low.start, exact.start, atol=0.05, rtol=0)


@pytest.fixture
def release(tmp_path):
    """The release's two files for the small network, as DataParallel names the keys."""
    network = BCNet(SMALL)
    paths = {}
    for part in ("bpm", "abi"):
        state = {f"module.{key}": value for key, value in network.get_submodule(part).state_dict().items()}
        if part == "abi":
            state["module.query.weight"] = torch.zeros(7, 20)
        paths[part] = tmp_path / f"{part}.pth.tar"
        torch.save({"epoch": 9, "state_dict": state}, paths[part])
    return network, paths


def test_conversion_keeps_every_weight_and_drops_the_unused_embedding(release):
    network, paths = release
    state = releases.convert_bcnet(paths["bpm"], paths["abi"], CONFIG)
    assert state.keys() == network.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in network.state_dict().items())


def test_conversion_lists_every_key_that_does_not_fit(release):
    _, paths = release
    content = torch.load(paths["bpm"], weights_only=True)
    state = content["state_dict"]
    del state["module.fc_cls.0.weight"]
    state["module.extra"] = torch.zeros(1)
    state["module.bpm_base.0.bias"] = torch.zeros(3)
    torch.save(content, paths["bpm"])
    expected = (
        r"bpm.pth.tar: weights do not fit the network; missing: fc_cls.0.weight; unknown: extra; "
        r"misshaped: bpm_base.0.bias \(has \[3\], expected \[16\]\)"
    )
    with pytest.raises(InputError, match=expected):
        releases.convert_bcnet(paths["bpm"], paths["abi"], CONFIG)


class Payload:
    """An object in a hostile checkpoint; loading must refuse it without creating one."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Payload(), "damaged, or holds other objects than tensors"),
        ({"epoch": 9}, "holds the keys epoch, expected a PyTorch file"),
        ({"state_dict": {"module.x": "text"}}, "other objects than tensors at the state_dict keys module.x"),
        ({"state_dict": {3: torch.zeros(1)}}, "other objects than tensors at the state_dict keys 3"),
    ],
    ids=["pickled object", "no state_dict", "text for a tensor", "number for a name"],
)
def test_a_foreign_release_file_is_refused(release, content, message):
    torch.save(content, release[1]["bpm"])
    with pytest.raises(InputError, match=message):
        releases.convert_bcnet(release[1]["bpm"], release[1]["abi"], CONFIG)


def test_a_number_for_a_table_is_misshaped_and_torch_warnings_are_not_shown(release, recwarn):
    content = torch.load(release[1]["bpm"], weights_only=True)
    table = next(key for key in release[0].bpm.state_dict() if key.endswith(".pe"))
    content["state_dict"][f"module.{table}"] = torch.tensor(1.0)
    torch.save(content, release[1]["bpm"], pickle_protocol=3)
    with pytest.raises(InputError, match=rf"misshaped: {table} \(has \[\], expected .*\)"):
        releases.convert_bcnet(release[1]["bpm"], release[1]["abi"], CONFIG)
    assert not recwarn.list


def test_swapped_and_truncated_release_files_are_named(release):
    _, paths = release
    with pytest.raises(InputError, match="is the other network, expected BPM; swap --bpm and --abi"):
        releases.convert_bcnet(paths["abi"], paths["bpm"], CONFIG)
    paths["abi"].write_bytes(paths["abi"].read_bytes()[:1000])
    with pytest.raises(InputError, match=r"abi\.pth\.tar cannot be read .* expected a PyTorch file"):
        releases.convert_bcnet(paths["bpm"], paths["abi"], CONFIG)
