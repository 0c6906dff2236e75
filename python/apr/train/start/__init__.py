"""Before the first step: options, files and machine are checked, and what a run would take is measured."""
