"""Options: the yml, what each option may be, and whether options, data and checkpoints fit each other."""
