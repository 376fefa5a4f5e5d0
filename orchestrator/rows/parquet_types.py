"""Arrow types in plain form: without dictionaries, views and extensions. Imported only for Parquet."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from orchestrator.errors import DataError

# What pyarrow raises for files and values that it cannot use.
FOREIGN = (OSError, pa.ArrowException)
UUID = "extension<arrow.uuid>"
# By name, since older releases of pyarrow do not have them.
_VIEWS = {"string_view": pa.large_string(), "binary_view": pa.large_binary()}


def plain_type(kind: Any) -> Any:
    """The type of the same values without dictionaries, views and extensions; a UUID stays one."""
    if str(kind) in _VIEWS:
        return _VIEWS[str(kind)]
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType) and str(kind) != UUID:
        return plain_type(kind.storage_type)
    if pa.types.is_struct(kind):
        fields = [pa.field(field.name, plain_type(field.type)) for field in kind]
        return (
            kind if all(new.type == old.type for new, old in zip(fields, kind, strict=True)) else pa.struct(fields)
        )
    return _plain_list(kind) if _is_nested(kind) else kind


def _is_nested(kind: Any) -> bool:
    return str(kind).startswith(("list<", "large_list<", "list_view<", "large_list_view<", "fixed_size_list<"))


def _plain_list(kind: Any) -> Any:
    value = plain_type(kind.value_type)
    if "view<" in str(kind).split("<", 1)[0] + "<":
        return pa.large_list(value)
    if value == kind.value_type:
        return kind
    return pa.list_(value, kind.list_size) if pa.types.is_fixed_size_list(kind) else pa.large_list(value)


def plain(column: Any) -> Any:
    """A column as an array of its plain type."""
    if isinstance(column, pa.ExtensionArray) and str(column.type) != UUID:
        column = column.storage
    kind = plain_type(column.type)
    return column if column.type == kind else column.cast(kind)


def words_or_numbers(what: str, column: Any, *, each: str) -> npt.NDArray[Any]:
    """A plain column of ids or labels as a numpy array: text, or numbers.

    Args:
        what: names the column in errors.
        column: without a dictionary; text may lie in it as bytes, and whole numbers as decimals.
        each: what every row must have, for errors.

    Raises:
        DataError: nulls, bytes that are no text, decimals beyond 64 bits, or values that are neither.
    """
    if column.null_count:
        raise DataError(what, got=f"{column.null_count} nulls", expected=f"{each} in every row")
    kind = column.type
    if str(kind) == UUID:
        return np.array([str(value) for value in column.to_pylist()], np.str_)
    try:
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            column = column.cast(pa.large_string())
        if (pa.types.is_decimal(kind) and kind.scale == 0) or pa.types.is_uint64(kind):
            column = column.cast(pa.int64())
        if is_text(column.type):
            return np.array(column.to_pylist(), np.str_)
    except (*FOREIGN, UnicodeDecodeError) as error:
        raise DataError(what, got=f"{kind} ({error})", expected="whole numbers of 64 bits, or text") from error
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise DataError(what, got=f"{kind}", expected=f"whole numbers or text, {each} in every row")
    return np.asarray(column.to_numpy(zero_copy_only=False))


def is_text(kind: Any) -> bool:
    """Whether values of a plain type become text as ids or labels."""
    known = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return str(kind) == UUID or any(check(kind) for check in known)
