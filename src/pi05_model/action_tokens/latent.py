"""What FSQ and VQ tokenizers share: a small transformer that squeezes a chunk into a fixed number of latent vectors.

    chunk [H, D] -> patches of P steps [R, P·D] + positions, K learned queries -> encoder -> K latents [K, C]
    -> quantiser -> K ids -> codes [K, C] + positions, R learned queries -> decoder -> patches -> chunk [H, D]

The quantiser is all that the two kinds differ in. Folder: config.json, model.safetensors, norm_stats.json.
"""

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pi05_model.action_tokens.grammar import FixedGrammar
from pi05_model.action_tokens.protocol import (
    ActionSpace,
    ActionTokenizerError,
    Chunks,
    MalformedActionsError,
    check_chunks,
)

CONFIG, WEIGHTS, FORMAT = "config.json", "model.safetensors", "pi05_ros/action_tokenizer/1"
_BATCH = 256

Progress = Callable[[int, float], None]
"""Called after every step of a fit with the steps done and the loss."""


@dataclass(frozen=True)
class LatentConfig:
    """Sizes of the tokenizer's network."""

    horizon: int
    """Steps of a chunk."""
    dim: int
    """Entries of an action."""
    tokens: int = 8
    """Ids of a chunk."""
    patch: int = 5
    """Steps that one position of the transformers reads or writes; the last patch may reach past the chunk."""
    width: int = 96
    """Width of the transformers."""
    layers: int = 2
    """Layers of the encoder and of the decoder, each."""
    heads: int = 4
    """Attention heads."""

    def __post_init__(self) -> None:
        for field in ("horizon", "dim", "tokens", "patch", "width", "layers", "heads"):
            if getattr(self, field) < 1:
                raise ActionTokenizerError(f"{field} must be at least 1, got {getattr(self, field)}")
        if self.width % self.heads:
            raise ActionTokenizerError(f"width {self.width} is not a multiple of {self.heads} heads")

    @property
    def patches(self) -> int:
        """Patches of a chunk."""
        return -(-self.horizon // self.patch)


@dataclass(frozen=True)
class FitConfig:
    """How a latent tokenizer is fitted."""

    steps: int = 3000
    """Optimizer steps."""
    batch_size: int = 64
    """Chunks per step."""
    learning_rate: float = 1e-3
    """Peak learning rate; it rises over a twentieth of the steps and falls to zero along a cosine."""
    seed: int = 0
    """Of the weights and the batches."""


class Quantiser(nn.Module, ABC):
    """Latents to ids and back."""

    width: int
    """Entries of a latent."""
    vocab_size: int

    @abstractmethod
    def forward(self, latents_BKC: Tensor) -> tuple[Tensor, Tensor]:
        """Return codes [B, K, C], whose gradient passes straight through to the latents, and a loss of its own."""

    @abstractmethod
    def indices(self, latents_BKC: Tensor) -> Tensor:
        """Return ids [B, K]."""

    @abstractmethod
    def codes(self, indices_BK: Tensor) -> Tensor:
        """Return codes [B, K, C]."""


class _Transformer(nn.Module):
    """Bidirectional transformer over a sequence followed by learned queries; returns what stands at the queries."""

    def __init__(self, inputs: int, length: int, queries: int, outputs: int, config: LatentConfig) -> None:
        super().__init__()
        self.project_in = nn.Linear(inputs, config.width)
        self.positions = nn.Parameter(torch.randn(length, config.width) * 0.02)
        self.queries = nn.Parameter(torch.randn(queries, config.width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            config.width,
            config.heads,
            4 * config.width,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.layers = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(config.width)
        self.project_out = nn.Linear(config.width, outputs)

    def forward(self, x_BLI: Tensor) -> Tensor:
        rows = self.project_in(x_BLI) + self.positions
        queries = self.queries.expand(len(x_BLI), -1, -1)
        hidden = self.layers(torch.cat([rows, queries], dim=1))[:, rows.shape[1] :]
        projected: Tensor = self.project_out(self.norm(hidden))
        return projected


class LatentNetwork(nn.Module):
    """Encoder, quantiser, decoder."""

    def __init__(self, config: LatentConfig, quantiser: Quantiser) -> None:
        super().__init__()
        patch = config.patch * config.dim
        self._config = config
        self.encoder = _Transformer(patch, config.patches, config.tokens, quantiser.width, config)
        self.quantiser = quantiser
        self.decoder = _Transformer(quantiser.width, config.tokens, config.patches, patch, config)

    def forward(self, x_BHD: Tensor) -> tuple[Tensor, Tensor]:
        """Return the reconstruction [B, H, D] and the quantiser's loss."""
        codes, loss = self.quantiser(self.latents(x_BHD))
        return self.chunks(codes), loss

    def latents(self, x_BHD: Tensor) -> Tensor:
        """Return what the quantiser gets, [B, K, C]."""
        beyond = self._config.patches * self._config.patch - x_BHD.shape[1]
        x_BHD = torch.cat([x_BHD, x_BHD[:, -1:].expand(-1, beyond, -1)], dim=1)
        config = self._config
        latents: Tensor = self.encoder(x_BHD.reshape(len(x_BHD), config.patches, config.patch * config.dim))
        return latents

    def chunks(self, codes_BKC: Tensor) -> Tensor:
        """Return chunks [B, H, D]."""
        patches: Tensor = self.decoder(codes_BKC)
        config = self._config
        return patches.reshape(len(patches), config.patches * config.patch, config.dim)[:, : config.horizon]


class LatentTokenizer(ABC):
    """A tokenizer of a fixed number of tokens, for chunks of one horizon and width.

    Args:
        config: sizes.
        network: encoder, quantiser and decoder.
        space: what the chunks mean in physical units.
    """

    kind: ClassVar[str]
    config_class: ClassVar[type[LatentConfig]]

    def __init__(self, config: LatentConfig, network: LatentNetwork, space: ActionSpace | None = None) -> None:
        self.config, self.network, self.space = config, network.eval().requires_grad_(False), space
        if space is not None and space.stats.dim != config.dim:
            raise ActionTokenizerError(f"the statistics have {space.stats.dim} entries, the tokenizer {config.dim}")

    @property
    def vocab_size(self) -> int:
        """Ids are 0 ... vocab_size - 1."""
        return self.network.quantiser.vocab_size

    @classmethod
    @abstractmethod
    def build(cls, config: Any) -> LatentNetwork:
        """Return a new network."""

    @classmethod
    def fit_network(
        cls,
        chunks: ArrayLike,
        config: LatentConfig,
        fit: FitConfig,
        space: ActionSpace | None,
        progress: Progress | None,
    ) -> Any:
        """Fit a new network to normalised chunks [N, H, D]."""
        x = check_chunks(chunks, config.horizon, config.dim)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(fit.seed)
            network = cls.build(config)
        return cls(config, _fit(network, x, fit, progress), space)

    def adapt(
        self,
        chunks: ArrayLike,
        fit: FitConfig | None = None,
        space: ActionSpace | None = None,
        progress: Progress | None = None,
    ) -> Any:
        """Return a tokenizer whose network went on learning from the chunks of another domain; this one stays.

        Ids change their meaning gradually, unlike those of an adapted FAST tokenizer.
        """
        x = check_chunks(chunks, self.config.horizon, self.config.dim)
        network = self.build(self.config)
        network.load_state_dict(self.network.state_dict())
        return type(self)(self.config, _fit(network, x, fit or FitConfig(), progress), space)

    def encode(self, chunks: ArrayLike) -> list[list[int]]:
        """Return the ids of normalised chunks [B, H, D]."""
        x = torch.from_numpy(check_chunks(chunks, self.config.horizon, self.config.dim).astype(np.float32))
        with torch.inference_mode():
            parts = [self.network.quantiser.indices(self.network.latents(part)) for part in torch.split(x, _BATCH)]
        return [row for part in parts for row in part.tolist()]

    def decode(self, tokens: Sequence[Sequence[int]], horizon: int, dim: int) -> Chunks:
        """Return normalised chunks float32 [B, horizon, dim].

        Raises:
            ActionTokenizerError: the tokenizer is for another horizon or width.
            MalformedActionsError: a row has another number of tokens, or an unknown id.
        """
        self._check_size(horizon, dim)
        for row, ids in enumerate(tokens):
            if len(ids) != self.config.tokens:
                much = "few" if len(ids) < self.config.tokens else "many"
                raise MalformedActionsError(f"row {row}: too {much} tokens, {len(ids)} instead of {self.config.tokens}")
            unknown = [int(i) for i in ids if not 0 <= int(i) < self.vocab_size]
            if unknown:
                raise MalformedActionsError(f"row {row}: {unknown[0]} is no action token (0 … {self.vocab_size - 1})")
        indices = torch.tensor([list(map(int, ids)) for ids in tokens]).reshape(len(tokens), self.config.tokens)
        with torch.inference_mode():
            parts = [self.network.chunks(self.network.quantiser.codes(part)) for part in torch.split(indices, _BATCH)]
            decoded: NDArray[np.float32] = torch.cat(parts).numpy()
        return decoded

    def grammar(self, horizon: int, dim: int, max_tokens: int | None = None) -> FixedGrammar:
        """Return the rules for constrained decoding: exactly `config.tokens` tokens.

        Raises:
            ActionTokenizerError: the tokenizer is for another horizon or width, or needs more than `max_tokens`.
        """
        self._check_size(horizon, dim)
        if max_tokens is not None and max_tokens < self.config.tokens:
            raise ActionTokenizerError(f"a chunk needs {self.config.tokens} tokens, allowed are {max_tokens}")
        return FixedGrammar(self.vocab_size, self.config.tokens)

    def save(self, folder: Path | str) -> None:
        """Write config.json, model.safetensors and norm_stats.json."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: x.contiguous() for name, x in self.network.state_dict().items()}, folder / WEIGHTS)
        content = {
            "format": FORMAT,
            "kind": self.kind,
            "config": dataclasses.asdict(self.config),
            "relative_entries": list(self.space.relative_entries) if self.space else [],
        }
        (folder / CONFIG).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
        if self.space is not None:
            self.space.save(folder)

    def _check_size(self, horizon: int, dim: int) -> None:
        if (horizon, dim) != (self.config.horizon, self.config.dim):
            raise ActionTokenizerError(
                f"this tokenizer is for chunks of {self.config.horizon}x{self.config.dim}, not {horizon}x{dim}: "
                "fit one for that size"
            )


def load_latent(folder: Path | str) -> LatentTokenizer:
    """Read a folder written by `LatentTokenizer.save`.

    Raises:
        ActionTokenizerError: it is no tokenizer, of an unknown kind, or damaged; the message names the file.
    """
    from pi05_model.action_tokens.fsq import FsqTokenizer
    from pi05_model.action_tokens.vq import VqTokenizer

    kinds: dict[str, type[LatentTokenizer]] = {FsqTokenizer.kind: FsqTokenizer, VqTokenizer.kind: VqTokenizer}
    folder = Path(folder)
    try:
        content = json.loads((folder / CONFIG).read_text("utf-8"))
        kind = content["kind"]
        if content["format"] != FORMAT or kind not in kinds:
            raise ActionTokenizerError(
                f"{folder / CONFIG}: kind {kind!r} of {content['format']!r} is unknown; known are fast, "
                f"{', '.join(kinds)} of {FORMAT!r}"
            )
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content["config"].items()}
        config = kinds[kind].config_class(**values)
        network = kinds[kind].build(config)
        network.load_state_dict(load_file(folder / WEIGHTS))
    except FileNotFoundError as error:
        raise ActionTokenizerError(
            f"{folder} holds no action tokenizer: {error.filename or folder / WEIGHTS} is missing"
        ) from error
    except (KeyError, TypeError, json.JSONDecodeError, SafetensorError, RuntimeError) as error:
        raise ActionTokenizerError(f"{folder} is damaged: {error}") from error
    return kinds[kind](config, network, ActionSpace.load(folder, content.get("relative_entries", ())))


def _fit(network: LatentNetwork, x: NDArray[np.float64], fit: FitConfig, progress: Progress | None) -> LatentNetwork:
    """Fit a network to chunks [N, H, D] in place, by mean squared error.

    Raises:
        ActionTokenizerError: there are no chunks, or the loss stops being finite.
    """
    if not len(x):
        raise ActionTokenizerError("there are no chunks to learn from")
    data = torch.from_numpy(x.astype(np.float32))
    network.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=fit.learning_rate, weight_decay=0.0)
    warmup = max(1, fit.steps // 20)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warmup, 0.5 + 0.5 * float(np.cos(np.pi * step / max(1, fit.steps)))),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fit.seed)
        for step in range(fit.steps):
            batch = data[torch.randint(len(data), (fit.batch_size,))]
            decoded, extra = network(batch)
            loss = nn.functional.mse_loss(decoded, batch) + extra
            if not torch.isfinite(loss):
                raise ActionTokenizerError(f"the loss is {loss.item()} at step {step}: lower the learning rate")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            if progress is not None:
                progress(step + 1, loss.item())
    return network
