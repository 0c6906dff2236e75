"""The facts about an opened file that the container itself gives: form, sizes, dtypes, flags, checksums."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from apr.container.model_file import ModelFile


def container_facts(
    file: ModelFile, path: str, *, verify: Literal["structure", "full"] = "full"
) -> dict[str, Any]:
    """Describe an opened file, including one whose checksum is wrong.

    Args:
        file: the opened file.
        path: the path to show.
        verify: "full" reads every byte to decide `checksum_valid`; "structure" leaves it None.

    Returns:
        A dictionary that `json.dumps` accepts, as `apr.inspect` documents it.
    """
    # Opening has not read the tensors, so a file whose footer does not match can be described too.
    checks = file.verify().checks if verify == "full" else ()
    infos = [file.info(name) for name in file]
    footers = [check.passed for check in checks if check.name == "footer"]
    checksum_valid = True if footers else None
    # One wrong footer outweighs any number of missing ones: a missing footer is legal in old files.
    if False in footers:
        checksum_valid = False
    elif None in footers:
        checksum_valid = None
    return {
        "file": path,
        "files": list(file.file_paths) if file.is_sharded else None,
        "valid": all(check.passed is not False for check in checks),
        "format": file.form,
        "tensor_count": len(infos),
        "size_bytes": file.nbytes,
        "checksum_valid": checksum_valid,
        "dtypes": dict(Counter(info.dtype for info in infos).most_common()),
        **file.header_facts(),
        "metadata": dict(file.metadata),
    }
