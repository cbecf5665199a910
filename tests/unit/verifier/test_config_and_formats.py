"""Options of the verifier, and checks of the required format."""

from __future__ import annotations

import pytest

from openrlhf_ktae.verifier import VerifierConfig
from openrlhf_ktae.verifier.config import CONFIG_VARIABLE
from openrlhf_ktae.verifier.formats import keeps_format

THINK = ("think", "answer")


def test_settings_are_passed_through_the_environment():
    config = VerifierConfig(workers=3, timeout_s=7.0, require_tags=THINK, unknown="retry", reward_log_keys=("a",))
    assert VerifierConfig.from_env(config.to_env()) == config
    assert VerifierConfig.from_env({}) == VerifierConfig()
    assert VerifierConfig.from_env({CONFIG_VARIABLE: '{"timeout_s": 3}'}).timeout_s == 3.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "must hold a JSON object"),
        ("[1]", "must hold a JSON object"),
        ('{"wrkers": 1}', "wrkers: no such verifier option; known: after_retry"),
        ('{"workers": 1.5}', "workers 1.5: must be a int"),
        ('{"workers": true}', "workers True: must be a int"),
        ('{"timeout_s": "5"}', "timeout_s '5': must be a float"),
        ('{"require_tags": "think"}', "require_tags 'think': must be a list"),
    ],
)
def test_unreadable_settings_are_refused_by_name(text, message):
    with pytest.raises(ValueError) as error:
        VerifierConfig.from_env({CONFIG_VARIABLE: text})
    assert message in str(error.value)


@pytest.mark.parametrize(
    "options",
    [
        {"workers": 0},
        {"workers": 257},
        {"timeout_s": 0.0},
        {"cpu_s": -1.0},
        {"memory_mb": 100},
        {"recycle_after": 0},
        {"cache_size": -1},
        {"unknown": "ignore"},
        {"after_retry": "retry"},
        {"max_unknown_share": 1.5},
        {"unknown_window": 0},
        {"answer_format": "xml"},
        {"correct_reward": 0.0},
        {"reward_timeout_s": 0.0},
    ],
)
def test_values_out_of_range_are_refused_with_the_way_out(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError) as error:
        VerifierConfig(**options)
    assert str(error.value).startswith(f"{name} {value}: is out of range; use ")


@pytest.mark.parametrize(
    ("response", "kept"),
    [
        ("<think>a</think><answer>5</answer>", True),
        ("<think></think> text <answer></answer>", True),
        ("<answer>5</answer><think>a</think>", False),
        ("<think>a</think>", False),
        ("<think>a<answer>5</answer></think>", False),
        ("<think>a</think><think>b</think><answer>5</answer>", False),
        ("<think>a</think><answer>5", False),
        ("</think><think><answer></answer>", False),
        ("", False),
    ],
)
def test_tags_must_appear_once_each_in_order(response, kept):
    assert keeps_format(response, THINK, require_single_answer=False) is kept


@pytest.mark.parametrize(
    ("response", "kept"),
    [
        (r"\boxed{5}", True),
        (r"\boxed{5} \boxed{5}", False),
        (r"\boxed{5} \fbox{5}", False),
        ("<answer>5</answer>", True),
        (r"<answer>\boxed{5}</answer>", True),
        ("<answer>5</answer><answer>6</answer>", False),
        ("5", False),
    ],
)
def test_exactly_one_answer(response, kept):
    assert keeps_format(response, (), require_single_answer=True) is kept


def test_without_requirements_everything_keeps_the_format():
    assert keeps_format("", (), require_single_answer=False)
