"""The training and test commands: loop, resume, data-loader state, signals."""
