"""The parts of bench/first_contact.py: its steps, the process that each of them runs in, and the report."""
