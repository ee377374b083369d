"""Configs as builtin types."""



def to_builtins(value):
    """A section of a yml as dicts, lists, numbers and strings, whatever the reader of the yml made of it."""
    if isinstance(value, dict):
        return {str(key): to_builtins(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_builtins(item) for item in value]
    return value
