"""What is said of data that a person has to mend."""


class DataError(ValueError):
    """Something about the data that a person has to mend; the message names the file, the value and what to do."""
