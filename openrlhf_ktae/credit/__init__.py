"""Token credit: estimators that turn rollout-level advantages into token-level ones, for any trainer.

One file per estimator. A new estimator needs its own file and its name in the import below.
"""

from openrlhf_ktae.credit import (  # noqa: F401  (importing one registers it)
    entropy_bonus,
    entropy_mask,
    gtpo,
    ktae,
    ktae_by_context,
    lambda_grpo,
    mc_value,
    otb,
    prob_reweight,
    tempo,
)
from openrlhf_ktae.credit.batch import NEEDS, OF_POLICY, CreditBatch, TokenCredit, tokens_in_prompt
from openrlhf_ktae.credit.registry import (
    CUSTOM,
    Estimator,
    NoOptions,
    chosen_estimator,
    estimators,
    load_estimator,
    options_from,
    register,
)
from openrlhf_ktae.credit.sample import sample_batch, wrong_with

__all__ = [
    "CUSTOM",
    "NEEDS",
    "OF_POLICY",
    "CreditBatch",
    "Estimator",
    "NoOptions",
    "TokenCredit",
    "chosen_estimator",
    "estimators",
    "load_estimator",
    "options_from",
    "register",
    "sample_batch",
    "tokens_in_prompt",
    "wrong_with",
]
