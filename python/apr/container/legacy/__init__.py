"""Version 1 of the format (magic `APRN`), which is read but not written."""
