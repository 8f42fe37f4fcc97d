"""Keeps the progress bars and logs of `datasets` and of the hub's client off the program's output."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

_LOGGERS = ("datasets", "huggingface_hub", "httpx", "httpx2", "filelock", "fsspec")


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """Silences the libraries, whose errors are raised as well as logged, and puts their settings back.

    >>> with quiet_datasets():
    ...     pass
    """
    import datasets
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    bars, hub_bars = not datasets.are_progress_bars_disabled(), not are_progress_bars_disabled()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    datasets.disable_progress_bars()
    disable_progress_bars()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            datasets.enable_progress_bars()
        if hub_bars:
            enable_progress_bars()
