"""Key-token advantage estimation: the mathematics alone, for any trainer."""

from openrlhf_ktae.ktae.advantages import KeyTokenValues, compute_key_token_values, compute_ktae_advantages
from openrlhf_ktae.ktae.config import KTAEConfig

__all__ = ["KTAEConfig", "KeyTokenValues", "compute_key_token_values", "compute_ktae_advantages"]
