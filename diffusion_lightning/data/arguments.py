"""The range that whole numbers among the arguments of data must be in."""


def check_at_least(least: int, **arguments: int) -> None:
    """Raise a ValueError that names the first of the arguments that is not a whole number from `least` on."""
    for name, value in arguments.items():
        if not (value >= least and value % 1 == 0):
            raise ValueError(f"{name} must be at least {least}, got {value}")
