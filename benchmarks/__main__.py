"""`python -m benchmarks`; the command itself is elsewhere, since each process that is measured imports this module."""

import sys

if __name__ == "__main__":
    try:
        from benchmarks.command import main
    except ModuleNotFoundError as missing:
        sys.exit(sys.stderr.write(f"{missing.name} is not installed: pip install -e '.[test]'\n") and 2)
    sys.exit(main())
