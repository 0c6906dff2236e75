"""One `.apr` file of the current version, or of the JSON container that preceded it."""

from __future__ import annotations

from functools import cached_property

from apr.container.header import Flags, Header, flag_states
from apr.container.mapped_file import MappedFile


class AprFile(MappedFile):
    """An opened `.apr` file: a mapping from tensor names to tensors, in index order. Made by `apr.load`."""

    def __len__(self) -> int:
        return self.header.tensor_count  # without building the tuple of names

    @cached_property
    def header(self) -> Header:
        """The fields of the header."""
        fields = self._container.header()
        assert fields is not None  # only version 1 has no such header, and V1File is another class
        return Header(
            magic=fields.magic,
            version=fields.version,
            flags=Flags(fields.flags),
            tensor_count=fields.tensor_count,
            metadata_offset=fields.metadata_offset,
            metadata_size=fields.metadata_size,
            tensor_index_offset=fields.tensor_index_offset,
            data_offset=fields.data_offset,
            checksum=fields.checksum,
            reserved=fields.reserved,
        )

    def header_facts(self) -> dict[str, object]:
        header = self.header
        return {
            "version": ".".join(map(str, header.version)),
            "header_checksum": None if header.checksum is None else f"{header.checksum:#010x}",
            "footer_checksum": None if self.footer is None else f"{self.footer:#010x}",
            **flag_states(header.flags),
            "reserved": header.reserved.hex() if header.reserved and any(header.reserved) else None,
            "v1": None,
        }
