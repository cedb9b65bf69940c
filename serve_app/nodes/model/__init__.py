"""Node classes that change a MODEL: patches, merges, training parameters; and those that save one."""
