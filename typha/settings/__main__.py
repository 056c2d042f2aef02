"""`python -m typha.settings`: print the tables of docs/configuration.md."""

import sys

from typha.settings import documentation

if __name__ == "__main__":
    sys.stdout.write(documentation.tables())
