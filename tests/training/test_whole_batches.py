import dataclasses

import pytest
from toy_pairs import SPLITS, TOWERS, TRAINING, collection, features, new_fuser

from modalloy.errors import ConfigError
from modalloy.fusion.original_hada import OriginalHadaConfig
from modalloy.training.fusion import fit_fuser
from modalloy.training.whole_batches import check_whole_batches

WITH_BATCH_NORM = {"method": "hada-original", "original": OriginalHadaConfig(norm="batch")}
REFUSED = [
    ({"chunk_size": 4}, r"chunk_size=4 would change what a BatchNorm sees.*leave chunk_size out"),
    ({"devices": 2}, r"devices=2 would change what a BatchNorm sees.*set devices to 1"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_a_batch_norm_sees_whole_batches(changes, message):
    training, towers = dataclasses.replace(TRAINING, **changes), dataclasses.replace(TOWERS, **WITH_BATCH_NORM)
    with pytest.raises(ConfigError, match=f"^fusion.first_stage.{message}"):
        check_whole_batches(towers, training, "fusion.first_stage")
    check_whole_batches(towers, TRAINING)
    check_whole_batches(dataclasses.replace(towers, original=OriginalHadaConfig()), training)


def test_a_fit_is_refused_before_it_begins(tmp_path):
    paired = features(collection(tmp_path / "pictures", SPLITS), tmp_path / "features")
    fuser, splits = new_fuser(paired, **WITH_BATCH_NORM), (paired.split("train"), paired.split("val"))
    for changes, message in REFUSED:
        with pytest.raises(ConfigError, match=message):
            fit_fuser(fuser, dataclasses.replace(TRAINING, **changes), *splits, tmp_path / "fit", "test")
    assert not (tmp_path / "fit").exists()
