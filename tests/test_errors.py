import pytest

from modalloy import errors

KINDS = [errors.ConfigError, errors.DataError, errors.ImageError, errors.FeatureError, errors.CheckpointError]


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_line_can_catch_every_kind_at_once(kind):
    with pytest.raises(errors.ModalloyError, match="what was wrong"):
        raise kind("what was wrong")


def test_every_kind_is_listed_here():
    defined = {value for value in vars(errors).values() if isinstance(value, type)}
    assert defined == {errors.ModalloyError, *KINDS}


def test_a_bad_picture_is_bad_data_and_programming_mistakes_are_neither():
    assert issubclass(errors.ImageError, errors.DataError)
    assert not issubclass(TypeError, errors.ModalloyError)
    assert not issubclass(errors.ModalloyError, ValueError | OSError)
