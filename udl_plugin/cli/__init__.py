"""The commands, one module each. They parse arguments and print; the work is done in the other folders."""
