"""What first questions would otherwise wait for: an encoder loads its backbones when they are first used."""

import logging

from PIL import Image

from modalloy.encoders import Encoder

_log = logging.getLogger(__name__)
_SIDE = 64


def warm(encoder: Encoder) -> None:
    """Has an encoder read a text and look at a picture; what it can't do is left to the questions, and logged.

    Args:
        encoder: used by nobody else at the moment.
    """
    for modality in encoder.modalities:
        try:
            if modality == "text":
                encoder.encode_texts(["picture"])
            else:
                encoder.encode_images([Image.new("RGB", (_SIDE, _SIDE))])
        # Whatever it is, a question that meets it says so; more-like-this works without the backbones, which may not
        # be there where features were made elsewhere.
        except Exception as error:
            _log.warning("%s isn't ready for a query of modality %s: %s", encoder.name, modality, error)
