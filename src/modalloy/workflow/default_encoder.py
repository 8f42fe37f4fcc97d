"""The encoder that is meant where none is named."""

import logging
from pathlib import Path

from modalloy.encoders.checkpoint import CONFIG
from modalloy.errors import ConfigError, DataError
from modalloy.files import read_json
from modalloy.fusion.alloy import FORMAT

RUNS = Path("runs")
_log = logging.getLogger(__name__)


def default_spec(runs: Path = RUNS) -> str:
    """The spec of the one alloy among some runs; the log says which it is.

    Args:
        runs: the folder of the runs.

    Raises:
        ConfigError: there is no alloy, or several.
    """
    alloys = sorted(config.parent for config in runs.glob(f"*/{CONFIG}") if _is_alloys(config))
    if not alloys:
        raise ConfigError(
            f"there is no alloy in {runs}/ that could embed your pictures: make one (modalloy demo, or modalloy run "
            "CONFIG.yaml), or name a dual encoder, such as --encoder clip:openai/clip-vit-base-patch32."
        )
    if len(alloys) > 1:
        raise ConfigError(
            f"{runs}/ holds several alloys; name one: {', '.join(f'--encoder alloy:{alloy}' for alloy in alloys)}."
        )
    spec = f"alloy:{alloys[0]}"
    _log.info("the encoder is %s, the one alloy in %s/", spec, runs)
    return spec


def _is_alloys(config: Path) -> bool:
    try:
        value = read_json(config)
    except DataError:
        return False
    return isinstance(value, dict) and value.get("format") == FORMAT
