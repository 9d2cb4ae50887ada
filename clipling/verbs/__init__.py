"""One file a verb: its typed arguments (which are the flags), its help, and a call. Nothing heavy is imported before a verb runs."""
