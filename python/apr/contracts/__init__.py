"""Contracts: promises in YAML, each with a test that can prove it false."""

from apr.contracts.schema import Contract, load_contract
from apr.contracts.verdict import Verdict, check

__all__ = ["Contract", "Verdict", "check", "load_contract"]
