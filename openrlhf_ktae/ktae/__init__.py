"""Key-token advantage estimation: the mathematics, independent of any trainer."""

from openrlhf_ktae.ktae.advantages import compute_key_token_values, compute_ktae_advantages
from openrlhf_ktae.ktae.batch import above
from openrlhf_ktae.ktae.config import KTAEConfig
from openrlhf_ktae.ktae.explain import GroupExplanation, explain_group, rollout_share
from openrlhf_ktae.ktae.sums import CreditSums, credit_sums, discounted_returns, repeated_grams, warm_up

__all__ = [
    "CreditSums",
    "GroupExplanation",
    "KTAEConfig",
    "above",
    "compute_key_token_values",
    "compute_ktae_advantages",
    "credit_sums",
    "discounted_returns",
    "explain_group",
    "repeated_grams",
    "rollout_share",
    "warm_up",
]
