"""The text column of Parquet files."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from apr.data.corpus_json import BATCH_DOCUMENTS, named_fields
from apr.data.documents import Batch, Skipped
from apr.errors import FormatError, RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from apr.data.corpus_files import CorpusFile
    from apr.data.documents import Place

# Rows that are decoded at a time; pyarrow's own 65,536 would hold many large documents in memory.
_ROWS = 1024


def parquet_batches(
    file: CorpusFile, field: str, first: Place, read_before: int, nbytes: int
) -> Iterator[Batch]:
    """Yield the values of the text column from a row on, about `nbytes` at a time.

    Raises:
        FormatError: the file is damaged.
        RefusedError: two columns have the name.
        OSError: reading failed.
    """
    with _open(file) as table:
        rows = table.metadata.num_rows
        _check_unique(file, table, field)
        if (problem := _column_problem(table, field)) is not None:
            skipped = Skipped(str(file.path), problem, rows)
            yield Batch("skipped", [skipped], first, read_before + file.nbytes)
            return
        values: list[bytes | None] = []
        size = 0
        for value in _values(table, field, first.number):
            values.append(value)
            size += len(value or b"")
            if size >= nbytes or len(values) >= BATCH_DOCUMENTS:
                # Parquet has no position in bytes, so it is estimated from the rows.
                share = (first.number + len(values)) / max(1, rows)
                batch = Batch("parquet", values, first, read_before + int(share * file.nbytes))
                yield batch
                first, values, size = batch.after(len(values)), [], 0
        if values:
            yield Batch("parquet", values, first, read_before + file.nbytes)


def check_column(file: CorpusFile, field: str) -> None:
    """Check that a file with rows has one text column of this name.

    Raises:
        RefusedError: it has none, and the message lists the columns that are there; or it has several.
        FormatError, OSError: the file cannot be read.
    """
    with _open(file) as table:
        _check_unique(file, table, field)
        problem = _column_problem(table, field) if table.metadata.num_rows else None
    if problem is not None:
        raise RefusedError(
            f"{file.path}: {problem}; use another --content-field, or leave the file out with --exclude",
            path=file.path,
        )


def parquet_rows(file: CorpusFile, field: str) -> int | None:
    """Return the rows of a Parquet file; None without the text column, or if it cannot be read."""
    try:
        with _open(file) as table:
            _check_unique(file, table, field)
            rows: int = table.metadata.num_rows
            return rows if _column_problem(table, field) is None else None
    except (FormatError, RefusedError, OSError):
        # Reported when its documents are read.
        return None


@contextmanager
def _open(file: CorpusFile) -> Iterator[Any]:
    import pyarrow as pa
    from pyarrow import parquet

    name = str(file.path)
    try:
        with parquet.ParquetFile(file.path) as table:
            yield table
    except (pa.ArrowException, OSError) as error:
        # Arrow often reports damaged data as an OSError without a number.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise FormatError(f"{name}: not a readable Parquet file: {error}", path=name) from None


def _check_unique(file: CorpusFile, table: Any, field: str) -> None:  # noqa: ANN401 (pyarrow has no types)
    count = table.schema_arrow.names.count(field)
    if count > 1:
        raise RefusedError(
            f"{file.path}: {count} columns are named {field!r}; rename all but one, or leave the file out "
            "with --exclude",
            path=file.path,
        )


def _column_problem(table: Any, field: str) -> str | None:  # noqa: ANN401 (pyarrow has no types)
    """Return why a file has no text column of this name; None if it has one."""
    types = {column.name: column.type for column in table.schema_arrow}
    if field in types and _is_text(types[field]):
        return None
    missing = f"column {field!r} is {types[field]}, not text" if field in types else f"no column {field!r}"
    texts = [name for name, type_ in types.items() if _is_text(type_)]
    kind = "text columns" if texts else "columns"
    return f"{missing}; its {kind} are {named_fields(texts or types)}{'' if texts else ', none of them text'}"


def _values(table: Any, field: str, first_row: int) -> Iterator[bytes | None]:  # noqa: ANN401 (pyarrow)
    """Yield the values of a column from a row on. Row groups before it are not read."""
    groups = list(range(table.num_row_groups))
    to_skip = first_row
    while groups and to_skip >= (rows := table.metadata.row_group(groups[0]).num_rows):
        to_skip -= rows
        del groups[0]
    for batch in table.iter_batches(batch_size=_ROWS, row_groups=groups, columns=[field]):
        skipped = min(to_skip, batch.num_rows)
        to_skip -= skipped
        yield from _as_bytes(batch.column(0).slice(skipped))


def _as_bytes(column: Any) -> list[bytes | None]:  # noqa: ANN401 (pyarrow has no types)
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if isinstance(column.type, pa.BaseExtensionType):
        column = column.storage
    # Bytes, not str: a string column may contain invalid UTF-8, and one such value would fail all of it.
    values: list[bytes | None] = column.cast(pa.large_binary()).to_pylist()
    return values


def _is_text(type_: Any) -> bool:  # noqa: ANN401 (pyarrow has no types)
    import pyarrow as pa
    from pyarrow import types

    if isinstance(type_, pa.BaseExtensionType):
        type_ = type_.storage_type
    # Repeated texts are often stored as a dictionary: pandas writes its categories so.
    if types.is_dictionary(type_):
        type_ = type_.value_type
    checks = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")
    return (
        any(getattr(types, f"is_{check}")(type_) for check in checks)
        or types.is_fixed_size_binary(type_)
        # Of nulls alone nobody knows the type; each of them is skipped.
        or types.is_null(type_)
    )
