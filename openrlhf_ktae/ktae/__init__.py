"""Key-token advantage estimation: the mathematics alone, for any trainer."""

from openrlhf_ktae.ktae.advantages import (
    KeyTokenValues,
    compute_key_token_values,
    compute_ktae_advantages,
    warm_up,
)
from openrlhf_ktae.ktae.config import KTAEConfig
from openrlhf_ktae.ktae.explain import GroupExplanation, explain_group, rollout_share, top_key_tokens

__all__ = [
    "GroupExplanation",
    "KTAEConfig",
    "KeyTokenValues",
    "compute_key_token_values",
    "compute_ktae_advantages",
    "explain_group",
    "rollout_share",
    "top_key_tokens",
    "warm_up",
]
