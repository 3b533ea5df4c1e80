"""Files of other kinds and projects: the error says what they look like."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from helpers.sweeps import sweep
from safetensors.torch import save_file

from bcnet_fast import convert
from bcnet_fast.data.annotations import read_annotations
from bcnet_fast.data.features import open_features
from bcnet_fast.errors import InputError
from bcnet_fast.evaluation import read_results
from bcnet_fast.storage.checkpoint import read_config, save_training_state

# Weight names of each project, as their networks have them.
OTHERS = {
    "OpenTAD": ("module.projection.embed.0.conv.weight", "module.rpn_head.cls_head.0.conv.weight"),
    "ActionFormer": ("module.backbone.embd.0.conv.weight", "module.cls_head.cls_head.conv.bias"),
    "TriDet": ("module.backbone.embd.0.conv.weight", "module.start_head.head.0.conv.weight"),
    "mmaction2": ("backbone.conv1.conv.weight", "cls_head.fc_cls.weight"),
}
FLAGS = {"BMN": ["--bmn"], "G-TAD": ["--gtad"], r"BCNet \(BPM\)": ["--abi", "other.pth", "--bpm"]}


def refused(function, *arguments) -> str:
    with pytest.raises(InputError) as error:
        function(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("project", OTHERS)
@sweep("kind", FLAGS, keep=2)
def test_convert_names_the_project_of_a_checkpoint(tmp_path, project, kind):
    path = tmp_path / "theirs.pth.tar"
    torch.save({"epoch": 3, "state_dict": {name: torch.zeros(2) for name in OTHERS[project]}}, path)
    flags = [*FLAGS[kind], str(path), "--preset", "thumos14", "--output", str(tmp_path / "x.safetensors")]
    with pytest.raises(InputError, match=rf"theirs\.pth\.tar has weights of .*{project}.*, expected those of {kind}; "):
        convert.main(flags)
    assert not (tmp_path / "x.safetensors").exists()


def test_weights_of_an_unknown_network_are_not_listed_one_by_one(tmp_path):
    torch.save({"state_dict": {f"layer{n}.weight": torch.zeros(1) for n in range(50)}}, tmp_path / "x.pth")
    flags = ["--bmn", str(tmp_path / "x.pth"), "--preset", "thumos14", "--output", str(tmp_path / "x.safetensors")]
    text = refused(convert.main, flags)
    assert "has weights of an unknown network (layer0.weight, layer1.weight, layer2.weight, ...), expected" in text


def test_a_project_is_named_where_the_file_has_another_layout(tmp_path):
    content = {"model": {name: torch.zeros(1) for name in OTHERS["TriDet"]}, "epoch": 1}
    torch.save(content, tmp_path / "x.pth")
    flags = ["--gtad", str(tmp_path / "x.pth"), "--preset", "thumos14", "--output", str(tmp_path / "x.safetensors")]
    text = refused(convert.main, flags)
    assert "x.pth holds the keys model, epoch, expected a PyTorch file" in text and "those of TriDet" in text


def test_a_checkpoint_of_another_kind_is_named(tmp_path):
    save_file({name: torch.zeros(1) for name in OTHERS["ActionFormer"]}, tmp_path / "theirs.safetensors")
    assert "the weights look like those of ActionFormer" in refused(read_config, tmp_path / "theirs.safetensors")
    save_training_state(tmp_path / "state.safetensors", {"x": torch.zeros(1)}, {})
    text = refused(read_config, tmp_path / "state.safetensors")
    assert "is the state of a training, expected" in text and "best.safetensors" in text


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("clip.mp4", "clip.mp4 looks like a video: extract features from it first"),
        ("best.safetensors", "best.safetensors looks like a checkpoint: infer takes it with --checkpoint"),
        ("truth.json", "truth.json looks like annotations or results"),
        ("feats.pkl", "feats.pkl looks like a pickle, which is never loaded"),
    ],
)
def test_what_is_no_file_of_features_is_named(tmp_path, name, hint):
    (tmp_path / name).write_bytes(b"x")
    for path in (tmp_path / name, tmp_path):
        text = refused(lambda path=path: open_features(path, feature_dim=8))
        assert "expected .npy, .npz, .csv, .pt" in text and hint in text


def test_a_folder_of_folders_is_named(tmp_path):
    (tmp_path / "val").mkdir()
    (tmp_path / "train").mkdir()
    text = refused(lambda: open_features(tmp_path, feature_dim=8))
    assert "has no file of features" in text and text.endswith("it has 2 folders, such as train: give one of them")


def test_annotations_results_and_arrays_are_told_apart(tmp_path):
    truth, results, array = tmp_path / "truth.json", tmp_path / "results.json", tmp_path / "a.npy"
    truth.write_text(json.dumps({"database": {"v": {"annotations": []}}}))
    results.write_text(json.dumps({"version": "x", "results": {"v": []}, "external_data": {}}))
    np.save(array, np.full((3, 3), -1.0))
    assert "it looks like an annotation file, which --ground-truth takes" in refused(read_results, truth)
    assert "it looks like a result file, as infer writes it" in refused(read_annotations, results)
    for reader in (read_results, read_annotations):
        assert refused(reader, array).endswith("; it looks like a NumPy array")
