"""The networks reproduce lerobot's: an imported checkpoint gives the same numbers for the same inputs.

`tests/golden` (see its README) is always there: reduced π0.5, π0 and π0-FAST. A larger π0.5 lies beside the repository
(shared/reference); without it the cases called "larger" are skipped and say so.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from pi05_model.backbone import Backbone, Prefix
from pi05_model.batch import ModelInput, Text, TrainBatch
from pi05_model.checkpoint import load_network
from pi05_model.engine import Engine
from pi05_model.flow import interpolate
from pi05_model.flow_policy import FlowPolicy, time_embedding
from pi05_model.images import resize_with_pad
from pi05_model.interchange.foreign import Choices
from pi05_model.interchange.importer import import_checkpoint
from pi05_model.interchange.names import LEROBOT_PREFIX, rows
from pi05_model.masks import block_mask
from pi05_model.pi0 import Pi0
from pi05_model.pi05 import Pi05

GOLDEN = Path(__file__).parents[1] / "golden"
LARGER = Path(__file__).parents[3] / "shared" / "reference"
needs_larger = pytest.mark.skipif(not LARGER.is_dir(), reason=f"no larger reference at {LARGER}")
REAL = 7


@dataclass(frozen=True)
class Case:
    """An imported network, what it is given and what lerobot makes of it, under the names of tests/golden."""

    model: Backbone
    given: dict[str, Tensor]
    expected: dict[str, Tensor]

    @property
    def flow(self) -> FlowPolicy:
        assert isinstance(self.model, FlowPolicy)
        return self.model

    @property
    def inputs(self) -> ModelInput:
        return ModelInput(
            self.given["images"], self.given["image_mask"], prompt(self.given), state=self.given.get("state")
        )

    def prefix(self) -> Prefix:
        features = self.model.encode_images(self.given["images"])
        return self.model.embed_prefix(features, self.given["image_mask"], prompt(self.given))

    def batch(self, entries: int) -> TrainBatch:
        mask = torch.zeros(self.given["actions"].shape, dtype=torch.bool)
        mask[..., :entries] = True
        images, image_mask = self.given["images"], self.given["image_mask"]
        text, actions = prompt(self.given), self.given["actions"]
        return TrainBatch(images, image_mask, None, text, actions, mask, state=self.given.get("state"))


def prompt(given: dict[str, Tensor]) -> Text:
    none = torch.zeros_like(given["token_mask"])
    return Text(given["tokens"], given["token_mask"], none, none)


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)


def golden(policy: str, folder: Path) -> Case:
    sizes = json.loads((GOLDEN / "sizes.json").read_text())
    import_checkpoint(GOLDEN / policy, folder, Choices(sizes=sizes))
    given, expected = (load_file(GOLDEN / policy / f"{name}.safetensors") for name in ("inputs", "outputs"))
    return Case(load_network(folder), given, expected)


def read_larger(name: str) -> dict:
    return torch.load(LARGER / f"tiny_{name}.pt", weights_only=True)


def larger(folder: Path) -> Case:
    source = folder / "source"
    source.mkdir()
    save_file(read_larger("state_dict"), source / "model.safetensors")
    import_checkpoint(source, folder / "own", Choices(sizes=json.loads((LARGER / "tiny_dims.json").read_text())))
    given = read_larger("inputs")
    given |= {"images": torch.stack(given["images"], 1), "image_mask": torch.stack(given.pop("img_masks"), 1)}
    expected = read_larger("outputs")
    renamed = {
        "img_emb_cam0": "image_features",
        "prefix_embs": "prefix_embeddings",
        "prefix_pad": "prefix_valid",
        "prefix_out_last_hidden": "prefix_hidden",
        "kv_layer0_k": "key_0",
        "kv_layer0_v": "value_0",
        "time_emb": "time_embedding",
        "suffix_embs": "suffix_embeddings",
        "adarms_cond": "time_condition",
        "loss_first7": "loss_first_7",
        "loss_all32": "loss_all_32",
    }
    expected |= {new: expected[old] for old, new in renamed.items()}
    expected["image_features"] = expected["image_features"][:, None]
    expected |= {f"grad_norm/{name}": torch.tensor(norm) for name, norm in expected.pop("grad_norms").items()}
    return Case(load_network(folder / "own"), given, expected)


@pytest.fixture(scope="module", params=["pi05", "pi0", pytest.param("larger", marks=needs_larger)])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("imported")
    return larger(folder) if request.param == "larger" else golden(request.param, folder)


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return golden("pi0_fast", tmp_path_factory.mktemp("imported"))


def test_vision_tower_and_projector(case: Case) -> None:
    theirs = case.expected["image_features"]
    with torch.no_grad():
        close(case.model.encode_images(case.given["images"][:, : theirs.shape[1]]), theirs)


def test_prefix(case: Case) -> None:
    with torch.no_grad():
        prefix = case.prefix()
        hidden, cache = case.model.run_prefix(prefix)
    close(prefix.embeddings, case.expected["prefix_embeddings"])
    assert torch.equal(prefix.valid, case.expected["prefix_valid"])
    valid = prefix.valid
    close(hidden[valid], case.expected["prefix_hidden"][valid])
    close(cache[0].key[:, 0][valid], case.expected["key_0"][:, 0][valid])
    close(cache[0].value[:, 0][valid], case.expected["value_0"][:, 0][valid])


def test_time_embedding(case: Case) -> None:
    theirs = case.expected["time_embedding"]
    close(time_embedding(case.given["time"], theirs.shape[1]), theirs)


def test_what_enters_the_expert(case: Case) -> None:
    model = case.flow
    theirs = case.expected["suffix_embeddings"]
    with torch.no_grad():
        ours = model.embed_actions(case.given["x_t"], model.step(case.given["time"][:, None]))
        if isinstance(model, Pi0):
            ours = torch.cat([model.state_in(case.given["state"])[:, None], ours], dim=1)
        else:
            assert isinstance(model, Pi05)
            embedding = time_embedding(case.given["time"], theirs.shape[2])
            condition = F.silu(model.time_out(F.silu(model.time_in(embedding))))
            close(condition, case.expected["time_condition"])
    close(ours, theirs)


def test_velocity_and_its_errors(case: Case) -> None:
    model, given = case.flow, case.given
    with torch.no_grad():
        prefix = case.prefix()
        past, place = model.context(model.prefix_keys_values(prefix), prefix.prompt, given.get("state"))
        step = model.step(given["time"][:, None])
        v_t = model.velocity(given["x_t"], step, past, place)
        noisy, target = interpolate(given["noise"], given["actions"], given["time"][:, None])
        errors = (model.velocity(noisy, step, past, place) - target).square()
    close(v_t, case.expected["v_t"])
    close(errors, case.expected["losses"], 1e-4)


@pytest.mark.parametrize("steps", [10, 3])
def test_samples(case: Case, steps: int) -> None:
    chunk = Engine(case.model).sample_actions(case.inputs, case.given["noise"], steps=steps)
    close(chunk, case.expected[f"sample_{steps}"], 5e-5)


def test_loss_over_all_entries(case: Case) -> None:
    entries = case.model.config.max_action_dim
    with torch.no_grad():
        losses = case.flow.losses(case.batch(entries), 1.0, noise=case.given["noise"], time=case.given["time"])
    close(losses["flow"], case.expected["loss_all_32"], 1e-4)


def test_loss_and_gradients_of_the_real_entries(case: Case) -> None:
    model = case.flow
    model.zero_grad()
    given = {"noise": case.given["noise"], "time": case.given["time"]}
    losses = model.losses(case.batch(REAL), alpha=1.0, insulate=False, **given)
    close(losses["flow"].detach(), case.expected["loss_first_7"], 1e-4)
    losses["total"].backward()
    check_gradients(case)


def check_gradients(case: Case) -> None:
    """Compare the norm of every gradient; what lerobot leaves without one must have none, or zero, here."""
    parameters = dict(case.model.named_parameters())
    seen = 0
    for ours, theirs in rows(case.model.config):
        norms = [case.expected.get(f"grad_norm/{LEROBOT_PREFIX}{name}") for name in theirs]
        gradient = parameters[ours].grad
        found = 0.0 if gradient is None else gradient.norm().item()
        known = [norm.item() for norm in norms if norm is not None]
        assert found == pytest.approx(sum(norm**2 for norm in known) ** 0.5, abs=1e-4, rel=1e-4), ours
        seen += len(known)
    assert seen == sum(name.startswith("grad_norm/") for name in case.expected)


@needs_larger
def test_whole_gradients(tmp_path: Path) -> None:
    case = larger(tmp_path)
    given = {"noise": case.given["noise"], "time": case.given["time"]}
    case.flow.losses(case.batch(REAL), alpha=1.0, insulate=False, **given)["total"].backward()
    parameters = dict(case.model.named_parameters())
    table = {part: (ours, parts) for ours, parts in rows(case.model.config) for part in parts}
    wanted = {name.removeprefix("grad/"): value for name, value in case.expected.items() if name.startswith("grad/")}
    assert len(wanted) == 5
    for name, theirs in wanted.items():
        ours, parts = table[name.removeprefix(LEROBOT_PREFIX)]
        gradient = parameters[ours].grad
        assert gradient is not None
        if len(parts) > 1:  # the key projection is the rows between queries and values
            assert parts.index(name.removeprefix(LEROBOT_PREFIX)) == 1
            gradient = gradient[-2 * theirs.shape[0] : -theirs.shape[0]]
        close(gradient.view(theirs.shape), theirs, 1e-5)


def answered(case: Case) -> Text:
    """Return the prompt followed by the action tokens, each a block of its own, all but the first as targets."""
    tokens, mask = case.given["action_tokens"], case.given["action_token_mask"]
    none = torch.zeros_like(case.given["token_mask"])
    targets = mask.clone()
    targets[:, 0] = False
    return Text(
        torch.cat([case.given["tokens"], tokens], dim=1),
        torch.cat([case.given["token_mask"], mask], dim=1),
        torch.cat([none, torch.ones_like(mask)], dim=1),
        torch.cat([none, targets], dim=1),
    )


def test_fast_logits(fast: Case) -> None:
    text = answered(fast)
    with torch.no_grad():
        features = fast.model.encode_images(fast.given["images"])
        close(features, fast.expected["image_features"])
        prefix = fast.model.embed_prefix(features, fast.given["image_mask"], text)
        hidden, _ = fast.model.run_prefix(prefix)
    close(prefix.embeddings, fast.expected["embeddings"])
    seen, real = block_mask(prefix.starts, prefix.valid), fast.expected["valid"]
    both = real[:, :, None] & real[:, None, :]  # a masked token may see what it likes
    assert torch.equal(prefix.valid, real)
    assert torch.equal(seen & both, fast.expected["attention"])
    answer = hidden[:, -fast.given["action_tokens"].shape[1] :]
    mask = fast.given["action_token_mask"]
    close(answer[mask], fast.expected["action_hidden"][mask])
    close(fast.model.logits(answer)[mask].detach(), fast.expected["action_logits"][mask])


def test_fast_loss_and_gradients(fast: Case) -> None:
    model = fast.model
    config = model.config
    nothing = torch.zeros(len(fast.given["tokens"]), config.horizon, config.max_action_dim)
    images, image_mask = fast.given["images"], fast.given["image_mask"]
    batch = TrainBatch(images, image_mask, None, answered(fast), nothing, nothing.bool(), action_tokens=True)
    model.zero_grad()
    losses = model.losses(batch)
    close(losses["total"].detach(), fast.expected["loss"], 1e-4)
    losses["total"].backward()
    check_gradients(fast)


def test_fast_greedy_tokens(fast: Case) -> None:
    begin = torch.full_like(fast.given["tokens"][:, :1], 2)
    given = dict(fast.given)
    given["tokens"] = torch.cat([given["tokens"], begin], dim=1)
    given["token_mask"] = torch.cat([given["token_mask"], torch.ones_like(begin, dtype=torch.bool)], dim=1)
    inputs = ModelInput(given["images"], given["image_mask"], prompt(given))
    with torch.no_grad():
        features = fast.model.encode_images(given["images"])
        hidden, _ = fast.model.run_prefix(fast.model.embed_prefix(features, given["image_mask"], prompt(given)))
        close(fast.model.logits(hidden[:, -1]), fast.expected["first_logits"])
    wanted = fast.expected["greedy_tokens"]
    assert len(wanted.unique()) > 2
    assert Engine(fast.model).generate(inputs, max_tokens=wanted.shape[1], stop=()) == wanted.tolist()


@pytest.mark.parametrize("which", ["golden", pytest.param("larger", marks=needs_larger)])
def test_images_of_odd_sizes_and_a_missing_camera(which: str, tmp_path: Path) -> None:
    case = golden("pi05", tmp_path) if which == "golden" else larger(tmp_path)
    raw, given, expected = policy_level() if which == "golden" else larger_policy_level()
    size = case.model.config.image_size
    images = [resize_with_pad(image * 2 - 1, size) for image in raw]
    images.append(torch.full_like(images[0], -1))
    close(torch.stack(images, 1), expected["images"])
    inputs = ModelInput(torch.stack(images, 1), expected["image_mask"], prompt(given))
    close(Engine(case.model).sample_actions(inputs, given["noise"])[..., :REAL], expected["chunk"], 5e-5)
    resized = resize_with_pad(given["uint8"].permute(0, 3, 1, 2), size).permute(0, 2, 3, 1)
    assert torch.equal(resized, expected["uint8_resized"])


def policy_level() -> tuple[list[Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Return raw images in [0, 1], the rest of the inputs, and what lerobot's policy makes of them."""
    given, expected = (load_file(GOLDEN / "pi05" / f"policy_{name}.safetensors") for name in ("inputs", "outputs"))
    return [given["base_0_rgb"], given["left_wrist_0_rgb"]], given, expected


def larger_policy_level() -> tuple[list[Tensor], dict[str, Tensor], dict[str, Tensor]]:
    level = read_larger("policy_level")
    batch = level["batch"]
    raw = [batch[f"observation.images.{key}"] for key in ("base_0_rgb", "left_wrist_0_rgb")]
    tokens = {
        "tokens": batch["observation.language.tokens"],
        "token_mask": batch["observation.language.attention_mask"],
    }
    expected = {"images": torch.stack(level["pre_images"], 1), "image_mask": torch.stack(level["pre_masks"], 1)}
    expected |= {"chunk": level["chunk"], "uint8_resized": level["u8_resized"]}
    return raw, {**tokens, "noise": level["noise"], "uint8": level["u8"]}, expected
