"""transformers without its progress bars and warnings, and with errors that name the file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO

from transformers import logging

from bindscope.errors import BindscopeError, ModelError


@contextmanager
def loading(failure: str) -> Iterator[None]:
    """Run a block that calls transformers, quietly: what it warns of is checked by this package.

    failure: the beginning of the message, such as "the config of X cannot be read". Raises ModelError for any error
    in the block that is not one of bindscope's own.
    """
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with redirect_stderr(StringIO()):  # the GGUF reader draws a bar of its own, whatever the settings
            yield
    except (BindscopeError, MemoryError):
        raise
    except Exception as error:  # transformers, safetensors and tokenizers raise many unrelated classes here
        raise ModelError(f"{failure}: {' '.join(str(error).split())[:400]}") from error
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
