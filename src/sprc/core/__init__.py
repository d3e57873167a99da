"""What every other part stands on: errors, files, processes, the command line."""
