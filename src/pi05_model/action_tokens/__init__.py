"""Action tokenizers: FAST, FSQ and VQ behind one protocol (`ActionTokenizer`)."""

from pathlib import Path

from pi05_model.action_tokens.protocol import (
    ActionSpace,
    ActionTokenizer,
    ActionTokenizerError,
    Grammar,
    MalformedActionsError,
    check_space,
)

__all__ = [
    "ActionSpace",
    "ActionTokenizer",
    "ActionTokenizerError",
    "Grammar",
    "MalformedActionsError",
    "check_space",
    "load_action_tokenizer",
]


def load_action_tokenizer(folder: Path | str) -> ActionTokenizer:
    """Read a tokenizer of any kind: a folder written by `save`, or one of the files of `physical-intelligence/fast`.

    Raises:
        ActionTokenizerError: there is no tokenizer, or it is damaged; the message names the file.
    """
    folder = Path(folder)
    if (folder / "processor_config.json").exists():
        from pi05_model.action_tokens.fast import FastTokenizer

        return FastTokenizer.load(folder)
    from pi05_model.action_tokens.latent import load_latent  # torch takes seconds to import

    return load_latent(folder)
