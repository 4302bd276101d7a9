"""``python -m ramet.cli``: the same as ``ramet``, for programs that cannot rely on the PATH."""

from ramet.cli.main import main

if __name__ == "__main__":
    main()
