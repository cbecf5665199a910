"""Do the data sets have the columns that a run reads, with a value in every row, of compatible types?"""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

from openrlhf_ktae.base.batches import rollout_unit
from openrlhf_ktae.data import hub
from openrlhf_ktae.data.names import entries
from openrlhf_ktae.data.prompt_files import Table, UnreadableDataset, is_local, look
from openrlhf_ktae.data.prompt_folders import UNCOUNTED, cached_columns, look_into


def data_problems(args: SimpleNamespace) -> Iterator[str]:
    """Yield the problems of a run's prompts and held-out data."""
    if args.verifier.enable and not args.data.label_key:
        yield "--data.label_key: answers are checked against this column; name the column with the right answers"
    names = args.data.prompt_dataset
    if not names:
        yield "--data.prompt_dataset (--prompt_data): give a file, a folder or a name on the Hugging Face Hub"
    else:
        rows: list[int] = []
        yield from _columns(args, "--data.prompt_dataset", names, args.data.prompt_split, rows)
        yield from _shares(args.data.prompt_probs, names)
        needed = rollout_unit(args) // args.rollout.n_samples_per_prompt
        count = min(sum(rows), args.data.max_samples)
        if rows and 0 < count < needed:
            yield (
                f"--data.prompt_dataset {names}: has {count} prompts, but the smallest step takes "
                f"{needed}; lower --train.batch_size ({args.train.batch_size})"
            )
    if args.eval.dataset:
        yield from _columns(args, "--eval.dataset", args.eval.dataset, args.eval.split, [])


def _shares(probabilities: str | None, names: str) -> Iterator[str]:
    """Yield the problems of the sampling shares of several data sets."""
    if probabilities is None:
        return
    flag, count = f"--data.prompt_probs {probabilities}", len(entries(names))
    try:
        values = [float(text) for text in probabilities.split(",")]
    except ValueError:
        yield f"{flag}: give comma-separated numbers, one for each data set"
        return
    if len(values) != count:
        yield f"{flag}: has {len(values)} numbers, but --data.prompt_dataset has {count} data sets; give one for each"
    elif not all(0 <= value <= 1 for value in values) or abs(sum(values) - 1) > 1e-6:
        yield f"{flag}: give shares from 0 to 1 whose sum is 1"


def _columns(args: SimpleNamespace, flag: str, names: str, split: str, rows: list[int]) -> Iterator[str]:
    """Check each data set of a comma-separated list; append its number of rows to `rows`."""
    first: dict[str, tuple[str, str]] = {}
    for name, below in entries(names):
        if not name:
            yield f"{flag} {names}: nothing between two commas; remove one"
        elif not is_local(name):
            rows.append(UNCOUNTED)
            yield from _on_hub(args, flag, name)
        else:
            try:
                tables = _tables(name, below, split)
            except UnreadableDataset as error:
                yield f"{flag} {name}: {error}"
                continue
            rows.append(sum(table.rows for _, table in tables) if tables else UNCOUNTED)
            if split != "train" and not Path(name).is_dir():
                option = "--eval.split" if flag == "--eval.dataset" else "--data.prompt_split"
                yield f"{option} {split}: {name} is one file, whose only split is train; give train"
            for file, table in tables:
                if table.rows == 0:
                    yield f"{flag} {file}: is empty; give a file with at least one prompt"
                    continue
                yield from _values(args, flag, file, table)
                yield from _one_type(flag, file, table, first)


def _tables(name: str, below: str, split: str) -> list[tuple[str, Table]]:
    """Return the files of a local data set; `below` is the subfolder from NAME@FOLDER."""
    table = look(name)
    if table is not None:
        return [(name, table)]
    folder = Path(name, below)
    return look_into(folder if folder.is_dir() else Path(name), split)


def _on_hub(args: SimpleNamespace, flag: str, name: str) -> Iterator[str]:
    """Check a data set on the Hub; its columns are known only if it is in the local cache."""
    if reason := hub.missing(name, "dataset"):
        yield f"{flag} {name}: no such file, and {reason}"
        return
    columns = cached_columns(name)
    for option, column in (("--data.input_key", args.data.input_key), ("--data.label_key", args.data.label_key)):
        if columns and column and column not in columns:
            yield f"{option} {column}: {name} has no such column; it has {', '.join(sorted(columns))}"


def _one_type(flag: str, file: str, table: Table, first: dict[str, tuple[str, str]]) -> Iterator[str]:
    """Yield columns whose type differs from that in earlier files; `first` keeps the first file and type of each."""
    for column, kind in table.kinds.items():
        if kind == "nothing":
            continue
        kind = kind.replace("an empty text", "a text")
        other, known = first.setdefault(column, (file, kind))
        if known != kind:
            yield f"{flag} {file}: column {column} is {kind}, but in {other} it is {known}; write both as one type"


def _values(args: SimpleNamespace, flag: str, name: str, table: Table) -> Iterator[str]:
    """Yield columns that are missing, have rows without a value, or have the wrong type for their use."""
    prompt_kinds = ("a text", "a list") if args.data.apply_chat_template else ("a text",)
    options = (
        ("--data.input_key", args.data.input_key, prompt_kinds),
        ("--data.label_key", args.data.label_key, ("a text", "a number", "true or false", "a list")),
    )
    for option, column, kinds in options:
        if not column:
            continue
        if column not in table.columns:
            yield f"{option} {column}: {name} has no such column; it has {', '.join(table.columns)}"
        elif column in table.gaps:
            yield f"{option} {column}: in {name} {table.gaps[column]} there; fill or remove it"
        elif table.kinds.get(column) not in kinds:
            yield f"{option} {column}: in {name} it is {table.kinds.get(column)}; it must be {' or '.join(kinds)}"
    for column, what in table.mixed.items():
        yield f"{flag} {name}: column {column}: {what}, but a column has one type; write all as one type"
