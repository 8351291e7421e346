"""What a person has to mend, in one line: of their data, or of what they asked for."""


class DataError(ValueError):
    """Something about the data that a person has to mend; the message names the file, the value and what to do."""


class UsageError(ValueError):
    """A command line or config file that cannot be meant so; the message names the option and what to write."""
