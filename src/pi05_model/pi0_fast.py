"""π0-FAST: no action expert; the chunk is text, said token by token after the prompt. Source: arXiv 2501.09747."""

from torch import Tensor

from pi05_model.backbone import Backbone
from pi05_model.batch import TrainBatch


class Pi0Fast(Backbone):
    """Network and loss of π0-FAST."""

    def losses(self, batch: TrainBatch) -> dict[str, Tensor]:
        """Return scalar losses: "total" and "fast" (mean cross entropy of the action tokens), "fast_accuracy"."""
        sums, count = self.row_losses(batch), batch.counts()["fast"].sum().clamp(min=1)
        loss = sums["fast"].sum() / count
        return {"total": loss, "fast": loss, "fast_accuracy": sums["fast_hits"].sum() / count}

    def row_losses(self, batch: TrainBatch) -> dict[str, Tensor]:
        """Return what each sample adds, [B]: "fast" and "fast_hits", to be divided by `TrainBatch.counts`."""
        seen = self.config.expert_camera_indices
        features = self.encode_images(batch.images[:, seen])
        hidden, _ = self.run_prefix(self.embed_prefix(features, batch.image_mask[:, seen], batch.expert))
        loss, hits = self.text_loss(hidden, batch.expert, self.config.max_action_tokens)
        return {"fast": loss, "fast_hits": hits}

    forward = row_losses
