"""``python -m aebench``."""

from aebench.cli import cli


def main() -> None:
    """Run the command line."""
    cli(prog_name="aebench")


if __name__ == "__main__":
    main()
