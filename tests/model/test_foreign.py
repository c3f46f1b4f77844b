"""Checkpoints of lerobot and openpi: names, sizes and configurations that are taken, and those that are refused.

That an imported network gives lerobot's numbers is in `test_reference`.
"""

import json
from pathlib import Path

import pytest
import torch
from foreign_rig import (
    GOLDEN,
    POLICIES,
    SIZES,
    change_json,
    change_weights,
    choices,
    golden,
    same_weights,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from pi05_model.build import build
from pi05_model.checkpoint import CheckpointError, load_network
from pi05_model.config import PRESETS
from pi05_model.interchange.exporter import export_checkpoint
from pi05_model.interchange.foreign import Choices, is_foreign, read_foreign
from pi05_model.interchange.importer import import_checkpoint
from pi05_model.interchange.names import EMBEDDING, EXPERT_HEAD, LEROBOT_PREFIX, TEXT_HEAD, rows
from pi05_model.interchange.sizes import relative_entries
from pi05_model.prompts import PolicyName


@pytest.mark.parametrize("policy", POLICIES)
def test_every_parameter_has_one_row_and_every_name_one_use(policy: PolicyName) -> None:
    config = PRESETS[f"{policy}_base"]
    ours = [row for row, _ in rows(config)]
    theirs = [name for _, names in rows(config) for name in names]
    assert sorted(ours) == sorted(build(config, device="meta").state_dict())
    assert len(set(theirs)) == len(theirs)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_table_names_all_that_lerobot_wrote(policy: str) -> None:
    names = set(load_file(GOLDEN / policy / "model.safetensors"))
    known = {
        LEROBOT_PREFIX + name for _, parts in rows(read_foreign(GOLDEN / policy, choices()).config) for name in parts
    }
    heads = {LEROBOT_PREFIX + name for name in ((TEXT_HEAD,) if policy == "pi0_fast" else (TEXT_HEAD, EXPERT_HEAD))}
    assert names == known | heads


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    "age", ["openpi", "compiled", "old transformers", "head alone", "embedding alone", "leftovers"]
)
def test_names_of_every_age_give_the_same_network(policy: str, age: str, tmp_path: Path) -> None:
    pali = "model.paligemma_with_expert.paligemma"

    def change(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        head, embedding = LEROBOT_PREFIX + TEXT_HEAD, LEROBOT_PREFIX + EMBEDDING
        if age == "openpi":
            return {name.removeprefix("model."): tensor for name, tensor in weights.items()}
        if age == "compiled":
            return {f"module._orig_mod.{name}": tensor for name, tensor in weights.items()}
        if age == "old transformers":
            pairs = {
                f"{pali}.lm_head.": f"{pali}.language_model.lm_head.",
                f"{pali}.model.language_model.": f"{pali}.language_model.model.",
                f"{pali}.model.vision_tower.": f"{pali}.vision_tower.",
                f"{pali}.model.multi_modal_projector.": f"{pali}.multi_modal_projector.",
            }
            return {
                next((new + name.removeprefix(old) for old, new in pairs.items() if name.startswith(old)), name): tensor
                for name, tensor in weights.items()
            }
        if age == "head alone":
            weights[head] = weights.pop(embedding)
        if age == "embedding alone":
            del weights[head]
        if age == "leftovers":
            tower = f"{pali}.model.vision_tower.vision_model"
            weights |= {
                f"{tower}.head.probe": torch.zeros(1, 1, 32),
                f"{tower}.embeddings.position_ids": torch.arange(16),
            }
            weights |= {f"{pali}.model.language_model.rotary_emb.inv_freq": torch.zeros(4)}
        return weights

    import_checkpoint(golden(policy, tmp_path), tmp_path / "plain", choices())
    changed = golden(policy, tmp_path / "changed")
    change_weights(changed, change)
    imported = import_checkpoint(changed, tmp_path / "own", choices())
    assert same_weights(tmp_path / "own", tmp_path / "plain")
    unread = {name.removeprefix("module._orig_mod.") for name in imported.source.unread}
    assert any("lm_head" in name for name in unread) == (
        policy != "pi0_fast" or age not in ("head alone", "embedding alone")
    )
    assert len(unread) >= (3 if age == "leftovers" else 0)
    assert all(name in " ".join(imported.source.notes) for name in imported.source.unread)


def test_two_ages_of_one_name_are_refused(tmp_path: Path) -> None:
    folder = golden("pi0", tmp_path)
    change_weights(folder, lambda weights: weights | {"state_proj.bias": weights["model.state_proj.bias"].clone()})
    with pytest.raises(CheckpointError, match=r"state_proj\.bias and .*state_proj\.bias are the same tensor"):
        read_foreign(folder, choices())


def test_shards_are_one_network(tmp_path: Path) -> None:
    folder = golden("pi05", tmp_path)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, index = sorted(weights), {}
    for i in range(3):
        part = {name: weights[name] for name in names[i::3]}
        save_file(part, folder / f"model-0000{i + 1}-of-00003.safetensors")
        index |= dict.fromkeys(part, f"model-0000{i + 1}-of-00003.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    import_checkpoint(folder, tmp_path / "own", choices())
    import_checkpoint(GOLDEN / "pi05", tmp_path / "plain", choices())
    assert same_weights(tmp_path / "own", tmp_path / "plain")
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks model-00002-of-00003\.safetensors"):
        read_foreign(folder, choices())


def test_every_misfit_is_listed_and_nothing_is_written(tmp_path: Path) -> None:
    folder = golden("pi05", tmp_path)

    def change(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        del weights["model.time_mlp_in.bias"]
        weights["model.surprise"] = torch.zeros(3)
        weights["model.action_out_proj.bias"] = torch.zeros(9)
        weights["model.paligemma_with_expert.paligemma.model.language_model.layers.1.self_attn.k_proj.weight"] = (
            torch.zeros(16, 32)
        )
        return weights

    change_weights(folder, change)
    with pytest.raises(CheckpointError) as caught:
        import_checkpoint(folder, tmp_path / "own", choices())
    for problem in (
        "missing time_mlp_in.bias",
        "unexpected model.surprise (3,)",
        "misshaped action_out_proj.bias: (9,) makes (9,), expected (32,)",
        "layers.1.self_attn.v_proj.weight: (64, 32) + (16, 32) + (8, 32) makes (88, 32), expected (80, 32)",
    ):
        assert problem in str(caught.value)
    assert not (tmp_path / "own").exists()


def test_values_that_are_not_finite_are_listed_and_nothing_is_written(tmp_path: Path) -> None:
    folder = golden("pi0", tmp_path)
    names = ["model.state_proj.bias", "model.paligemma_with_expert.paligemma.model.language_model.norm.weight"]

    def change(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        weights[names[0]][1], weights[names[1]][4] = torch.nan, torch.inf
        return weights

    change_weights(folder, change)
    with pytest.raises(CheckpointError) as caught:
        import_checkpoint(folder, tmp_path / "own", choices())
    assert all(f"{name} holds values that are not finite" in str(caught.value) for name in names)
    assert not (tmp_path / "own").exists()


def test_a_folder_with_files_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="not empty"):
        import_checkpoint(GOLDEN / "pi05", tmp_path / "own", choices())
    assert [file.name for file in (tmp_path / "own").iterdir()] == ["notes.txt"]


def test_a_text_head_that_left_the_embedding_counts_where_actions_are_text(tmp_path: Path) -> None:
    def change(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        weights[LEROBOT_PREFIX + TEXT_HEAD] = weights[LEROBOT_PREFIX + TEXT_HEAD] + 1
        return weights

    hidden = torch.randn(3, 32)
    for policy, heard in (("pi0_fast", True), ("pi0", False)):
        folder = golden(policy, tmp_path)
        change_weights(folder, change)
        import_checkpoint(folder, tmp_path / f"own_{policy}", choices())
        model = load_network(tmp_path / f"own_{policy}")
        assert model.config.tied_head != heard
        with torch.no_grad():
            tied = hidden @ model.embed.weight.T
            said = model.logits(hidden)
        torch.testing.assert_close(said, tied + hidden.sum(dim=1, keepdim=True) if heard else tied)
        export_checkpoint(tmp_path / f"own_{policy}", tmp_path / f"back_{policy}", "lerobot")
        again = read_foreign(tmp_path / f"back_{policy}", choices())
        assert again.config.tied_head != heard


def test_sizes_come_from_tensors_where_nothing_else_says(tmp_path: Path) -> None:
    folder = golden("pi05", tmp_path)
    (folder / "config.json").unlink()
    change_weights(folder, lambda weights: {name.removeprefix("model."): t for name, t in weights.items()})
    source = read_foreign(folder, Choices(sizes={"vision": {"num_attention_heads": 4}}))
    whole = read_foreign(GOLDEN / "pi05", choices()).config
    assert source.family == "openpi"
    assert (source.config.vision, source.config.vlm, source.config.expert) == (whole.vision, whole.vlm, whole.expert)
    assert source.config.horizon == 50 and "assumed 50 steps" in source.notes[0]
    chosen = read_foreign(folder, Choices(sizes={"vision": {"num_attention_heads": 4}}, settings={"horizon": 15}))
    assert chosen.config.horizon == 15 and not any("assumed" in note for note in chosen.notes)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({}, "number of heads of a vision tower of width 32"),
        ({"vision": {"num_attention_heads": 4}}, r"vlm: config\.json says gemma_2b"),
        (SIZES | {"vocab": 300}, "sizes: vocab is 300, the tensors say 256"),
        (SIZES | {"image": 224}, "sizes: image is 224, the tensors say 56"),
        (SIZES | {"vlm": SIZES["vlm"] | {"num_heads": 7}}, "vlm: 64 query and 8 key rows are not 7 heads"),
        (SIZES | {"vlm": SIZES["vlm"] | {"head_dim": 16}}, "sizes: vlm: head_dim is 16, the tensors say 8"),
        (SIZES | {"expert": SIZES["expert"] | {"depth": 3}}, "sizes: expert: depth is 3, the tensors say 2"),
        (
            SIZES | {"vision": SIZES["vision"] | {"num_attention_heads": 5}},
            "vision width 32 is not a multiple of its 5 heads",
        ),
        (SIZES | {"heads": 8}, "unknown keys .*'heads'"),
    ],
)
def test_sizes_that_are_missing_or_wrong_are_named(sizes: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_foreign(GOLDEN / "pi05", Choices(sizes=sizes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": "pi0"}, "says pi0, the tensors are those of pi05"),
        ({"type": "smolvla"}, r"type 'smolvla' cannot be imported; valid: pi05, pi0, pi0_fast"),
        ({"max_period": 8.0}, r"max_period is 8\.0; only 4\.0"),
        ({"use_visual_memory": True}, "use_visual_memory is True"),
        ({"image_resolution": [224, 224]}, r"image_resolution is \[224, 224\], the tensors say \[56, 56\]"),
        ({"paligemma_variant": "gemma_9b"}, "unknown Gemma variant 'gemma_9b'"),
        ({"max_action_dim": 24}, r"misshaped action_in_proj\.weight"),
    ],
)
def test_a_config_that_contradicts_the_network_is_refused(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    folder = golden("pi05", tmp_path)
    change_json(folder / "config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        import_checkpoint(folder, tmp_path / "own", choices())


def test_a_config_of_lerobot_is_followed(tmp_path: Path) -> None:
    folder = golden("pi05", tmp_path)
    described = json.loads((folder / "config.json").read_text())
    inputs = described["input_features"]
    image = {"type": "VISUAL", "shape": [3, 480, 640]}
    inputs = {
        "observation.images.top": image,
        "observation.images.empty_camera_0": image,
        "observation.state": inputs["observation.state"],
    }
    names = ["shoulder", "elbow", "wrist", "left_gripper", "lift", "roll", "GRIPPER_right"]
    change_json(
        folder / "config.json",
        input_features=inputs,
        use_relative_actions=True,
        action_feature_names=names,
        chunk_size=30,
    )
    source = read_foreign(folder, choices())
    assert source.config.cameras == ("top",) == source.config.expert_cameras
    assert source.config.horizon == 30 and source.config.max_prompt_tokens == 14
    assert source.config.relative_entries == (0, 1, 2, 4, 5)
    assert source.extra["names"] == names
    assert relative_entries({"use_relative_actions": True, "relative_exclude_joints": []}, 3) == (0, 1, 2)
    with pytest.raises(CheckpointError, match="does not name the actions"):
        relative_entries({"use_relative_actions": True, "relative_exclude_joints": ["gripper"]}, 3)


def test_cameras_take_the_names_of_the_robot() -> None:
    names = ("front", "left", "right")
    config = read_foreign(GOLDEN / "pi0", choices(settings={"cameras": names})).config
    assert config.cameras == names == config.expert_cameras
    with pytest.raises(CheckpointError, match="2 camera names for the 3 that the network knows: base_0_rgb"):
        read_foreign(GOLDEN / "pi0", choices(settings={"cameras": names[:2]}))


def test_folders_that_are_something_else_say_what(tmp_path: Path) -> None:
    for name, text in (
        ("adapter_model.safetensors", "PEFT adapter"),
        ("params/x", "JAX checkpoint"),
        ("pretrained_model/model.safetensors", "weights in its folder pretrained_model"),
    ):
        folder = tmp_path / text
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(b"")
        with pytest.raises(CheckpointError, match=text):
            read_foreign(folder)


def test_what_is_no_policy_says_so(tmp_path: Path) -> None:
    save_file({"embeddings.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    assert not is_foreign(tmp_path)
    with pytest.raises(CheckpointError, match="not a policy of lerobot or openpi"):
        read_foreign(tmp_path)
    with pytest.raises(CheckpointError, match="holds neither"):
        read_foreign(tmp_path / "..")
    with pytest.raises(CheckpointError, match="no folder at"):
        read_foreign(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="not a JSON object"):
        read_foreign(tmp_path)


def test_a_checkpoint_of_this_project_is_not_imported_again(tmp_path: Path) -> None:
    import_checkpoint(GOLDEN / "pi0", tmp_path, choices())
    assert is_foreign(GOLDEN / "pi0") and not is_foreign(tmp_path)
    with pytest.raises(CheckpointError, match="of this project already"):
        read_foreign(tmp_path)
