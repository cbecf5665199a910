"""Each Python file named by an option imports helpers from its own folder."""

import sys

import pytest

from openrlhf_ktae.credit import load_estimator
from openrlhf_ktae.verifier.user_reward import reward_function

ESTIMATOR = """
from openrlhf_ktae.credit import TokenCredit, register
from helper_of_a_user import SCALE

@register("scaled")
def scaled(batch, options):
    return SCALE
"""
REWARD = """
from helper_of_a_user import SCALE

def reward_func(queries, prompts, labels):
    return SCALE
"""


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    for number in (1, 2):
        folder = tmp_path / str(number)
        (folder / "helper_of_a_user").mkdir(parents=True)
        (folder / "helper_of_a_user/__init__.py").write_text("from helper_of_a_user.scale import SCALE")
        (folder / "helper_of_a_user/scale.py").write_text(f"SCALE = {number}")
        (folder / "estimator.py").write_text(ESTIMATOR)
        (folder / "reward.py").write_text(REWARD)
    return [tmp_path / "1", tmp_path / "2", tmp_path / "1"]


def test_each_file_gets_the_helpers_of_its_folder(folders):
    """Runs of a comparison share processes; this package must not be loaded twice either."""
    package = sys.modules["openrlhf_ktae.credit"]
    found = [load_estimator(folder / "estimator.py").compute(None, None) for folder in folders]
    found += [reward_function(str(folder / "reward.py"))([], [], []) for folder in folders]
    assert found == [1, 2, 1, 1, 2, 1]
    assert sys.modules["openrlhf_ktae.credit"] is package
