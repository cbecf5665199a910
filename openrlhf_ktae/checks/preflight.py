"""Problems refused before any model loads: one sentence each, with the option, its value and the way out."""

from types import SimpleNamespace

from openrlhf_ktae.backend import Backend
from openrlhf_ktae.base.errors import BadOption
from openrlhf_ktae.checks.backends import backend_problems
from openrlhf_ktae.checks.credit_file import credit_file_problems, value_problems
from openrlhf_ktae.checks.data_columns import data_problems
from openrlhf_ktae.checks.lora import lora_problems
from openrlhf_ktae.checks.losses import loss_problems
from openrlhf_ktae.checks.models import models_problems, name_problems
from openrlhf_ktae.checks.places import place_problems
from openrlhf_ktae.checks.replay import replay_problems
from openrlhf_ktae.checks.round_trip import round_trip
from openrlhf_ktae.checks.sizes import batch_problems, length_problems, parallel_problems
from openrlhf_ktae.checks.user_code import judge_problems


def preflight(args: SimpleNamespace, backend: Backend) -> list[str]:
    """Raise `BadOption` with every problem found; return notes on automatic repairs."""
    problems = [
        *parallel_problems(args),
        *batch_problems(args),
        *length_problems(args),
        *loss_problems(args),
        *models_problems(args),
        *lora_problems(args),
        *name_problems(args),
        *place_problems(args),
        *(replay_problems(args) if args.train.replay else (*data_problems(args), *judge_problems(args))),
        *credit_file_problems(args),
        *value_problems(args),
        *backend_problems(args, backend.name),
    ]
    notes: list[str] = []
    if not problems:  # last, since it imports transformers, which takes seconds
        problems, notes = round_trip(args)
    if problems:
        raise BadOption("\nerror: ".join(problems))
    return notes
