"""Before you start: bytes, hours and limits of a recipe at any number of pairs, and what small pilots forecast."""
