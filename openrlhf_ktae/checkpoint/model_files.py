"""Save a trained model in transformers format; the weights are written even if the other files fail."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from openrlhf_ktae.base.text import short

GENERATION_CONFIG = "generation_config.json"
NOT_SAVED = "not_saved.txt"  # in a checkpoint: which files its export lacks
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


class SavedInPart(RuntimeError):
    """The weights of a model were saved, but some of its other files were not."""


def make_savable(generation: Any) -> str:
    """Repair, in place, a GenerationConfig that transformers refuses to save; return what was changed.

    If it has sampling options with greedy decoding, loading only warns but saving raises. Training is unaffected: it
    samples with the run's options.
    """
    reason = _strictly(generation)
    if not reason:
        return ""
    if generation.do_sample is not True:
        before, generation.do_sample = generation.do_sample, True
        if not _strictly(generation):
            return f"saved with do_sample true, because transformers refuses to save it unchanged ({reason})"
        generation.do_sample = before
    kept = {name: getattr(generation, name, None) for name in TOKEN_IDS}
    generation.__dict__.clear()
    type(generation).__init__(generation, **kept)
    return f"saved with its token ids only, because transformers refuses to save it unchanged ({reason})"


def _strictly(generation: Any) -> str:
    try:
        generation.validate(strict=True)
    except (ValueError, TypeError) as error:
        return short(error, 200)
    return ""


@contextmanager
def always_save_weights(strategy: Any) -> Iterator[list[str]]:
    """Make the host's `strategy.save_model` always save the weights; yield a list of the other parts that failed.

    The host writes in one process while the others wait, so an error must not be raised before they continue.
    """
    host_save, failed = strategy.save_model, list[str]()

    def save_model(model: Any, tokenizer: Any, output_dir: str, **kwargs: Any) -> None:
        whole = strategy._unwrap_model(model)
        if getattr(whole, "generation_config", None) is not None:
            make_savable(whole.generation_config)
        own = whole.save_pretrained

        def save_pretrained(folder: str, state_dict: Any = None, **options: Any) -> None:
            try:
                own(folder, **({} if state_dict is None else {"state_dict": state_dict}), **options)
            except Exception as error:
                if state_dict is None or isinstance(error, OSError):
                    raise
                from huggingface_hub import save_torch_state_dict  # it names and shards files as transformers does

                save_torch_state_dict(state_dict, folder, metadata={"format": "pt"})
                failed.append(_what("configuration", error))

        writer = SimpleNamespace(save_pretrained=lambda folder: _tried("tokenizer", failed, tokenizer, folder))
        whole.save_pretrained = save_pretrained
        try:
            host_save(model, writer, output_dir, **kwargs)
        finally:
            del whole.save_pretrained

    strategy.save_model = save_model
    try:
        yield failed
    finally:
        del strategy.save_model


def _tried(what: str, failed: list[str], part: Any, folder: str) -> None:
    try:
        part.save_pretrained(folder)
    except Exception as error:
        failed.append(_what(what, error))


def _what(what: str, error: Exception) -> str:
    return f"{what} ({type(error).__name__}: {short(error, 300)})"


def require_all(failed: list[str], folder: str | Path) -> None:
    """Raise `SavedInPart` if part of the model in `folder` could not be saved."""
    if failed:
        raise SavedInPart(in_part(failed, folder))


def in_part(failed: list[str], folder: str | Path) -> str:
    """Return a message that says where the weights are and what is missing."""
    return (
        f"the weights are in {Path(folder).absolute()}; not saved with them: {'; '.join(failed)}. Copy the missing "
        "files from the model that the run started with"
    )
