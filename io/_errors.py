"""What can be wrong with an ensemble store."""


class StoreError(ValueError):
    """A store that is missing, is no ensemble store, is cut short, or belongs to another version or run."""


class StoreExistsError(StoreError, FileExistsError):
    """The place where a new store was to go is taken."""
