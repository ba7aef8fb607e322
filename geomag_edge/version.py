"""The version, for those below the package's own face."""

VERSION = "0.1.0"
