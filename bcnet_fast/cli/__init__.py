"""What commands share: flags, errors, exit codes, and the demo."""
