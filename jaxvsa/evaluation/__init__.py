"""Running a system over a split: outputs, intervals, tables, files."""
