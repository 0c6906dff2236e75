"""Contracts: promises, each with a test that can prove it false."""
